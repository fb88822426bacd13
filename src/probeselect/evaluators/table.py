"""The evaluators by name: one row each says what loads it, from which weights, with which settings.

Does not know any model; a row's code is imported only when it is loaded. Names that are not here may be plug-ins
(plugins.py) or evaluators elsewhere (remote.py).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.embedded import WEIGHTS
from probeselect.evaluators.plugins import load_plugin, plugin_names

if TYPE_CHECKING:  # names are checked without waiting for torch
    import torch

    from probeselect.evaluators.base import Evaluator

ELSEWHERE = ("http://", "https://", "exec:")  # what addresses of evaluators elsewhere begin with

_CLIP = "probeselect.evaluators.clip:ClipEvaluator"
_HEAD = "probeselect.evaluators.heads:ClipHeadEvaluator"
_BLIP = "probeselect.evaluators.blip:BlipEvaluator"
_LAYOUTS = "probeselect.evaluators.layouts"
_CLIP_B16, _CLIP_B32 = "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32"
_CLIP_L14 = "openai/clip-vit-large-patch14"
_CLIP_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_BLIP_ITM = "Salesforce/blip-itm-base-coco"


@dataclass(frozen=True)
class Published:
    """Weights that are published as pickles, which `convert` turns into a folder that the row loads.

    `layout`, as "module:function", is a layouts.Layout, called as layout(*tensors of the files, **settings).
    """

    where: str  # hub repository or web page
    files: Mapping[str, str | None]  # name there -> sha256, None where none is published or known to us
    layout: str
    processor: str  # hub id whose tokenizer and image processor are copied
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone_of_processor: bool = False  # its model.safetensors comes first, before the files


@dataclass(frozen=True)
class Row:
    """One evaluator: `loader`, as "module:callable", is called as loader(weights, **options, device=...)."""

    loader: str
    weights: str | Path | None = None  # hub id or folder; None: published as pickles only
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None
    typical: tuple[float, float] | None = None  # mean and standard deviation of its rewards, for a sanity check
    parts: tuple[str, ...] = ()  # rows whose folders, each under its name, make up the folder of this one


def _hps(file: str, sha256: str) -> Published:
    layout, settings = f"{_LAYOUTS}:open_clip", {"head_widths": (64, 80), "hidden_act": "gelu"}
    return Published("xswu/HPSv2", {file: sha256}, layout, _CLIP_H14, settings)


def _as_published(repository: str, processor: str | None = None) -> Published:
    files = {"pytorch_model.bin": None}
    return Published(repository, files, f"{_LAYOUTS}:as_published", processor or repository)


EVALUATORS: dict[str, Row] = {
    "clip-b16": Row(_CLIP, _CLIP_B16, published=_as_published(_CLIP_B16), typical=(31.94, 2.88)),
    "clip-b32": Row(_CLIP, _CLIP_B32, published=_as_published(_CLIP_B32), typical=(31.70, 2.85)),
    "pickscore": Row(
        _CLIP, "yuvalkirstain/PickScore_v1", {"scale": None, "processor": _CLIP_H14}, typical=(21.73, 1.04)
    ),
    "hpsv2.0": Row(
        _CLIP,
        options={"letterbox": True},
        published=_hps("HPS_v2_compressed.pt", "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1"),
        typical=(28.15, 1.65),
    ),
    "hpsv2.1": Row(
        _CLIP,
        options={"letterbox": True},
        published=_hps("HPS_v2.1_compressed.pt", "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"),
        typical=(25.76, 3.44),
    ),
    "imagereward": Row(
        "probeselect.evaluators.imagereward:ImageRewardEvaluator",
        published=Published(
            "THUDM/ImageReward",
            {"ImageReward.pt": "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"},
            f"{_LAYOUTS}:imagereward",
            "google-bert/bert-base-uncased",
            {"head_widths": (64, 64)},
        ),
        typical=(0.359, 0.942),
    ),
    "aesthetic": Row(
        _HEAD,
        published=Published(
            "github.com/christophschuhmann/improved-aesthetic-predictor",
            {"sac+logos+ava1-l14-linearMSE.pth": ("21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0")},
            f"{_LAYOUTS}:clip_head",
            _CLIP_L14,
            {"head_widths": (64, 64), "hidden_act": "quick_gelu"},
            backbone_of_processor=True,
        ),
    ),
    "blip-itc": Row(_BLIP, _BLIP_ITM, {"head": "itc"}, _as_published(_BLIP_ITM), typical=(0.473, 0.047)),
    "blip-itm": Row(_BLIP, _BLIP_ITM, {"head": "itm"}, _as_published(_BLIP_ITM), typical=(0.734, 0.325)),
    "ict": Row(_CLIP, options={"scale": 1.0}, published=_as_published("8y/ICT", _CLIP_H14), typical=(0.717, 0.171)),
    "hp": Row(
        _HEAD,
        options={"normalise": False, "sigmoid": True},
        published=Published(
            "8y/HP",
            {"hp_backbone/pytorch_model.bin": None, "hp_scorer/mlp_pytorch_model.bin": None},
            f"{_LAYOUTS}:clip_head",
            _CLIP_H14,
            {"head_widths": (64, 80), "hidden_act": "gelu"},
        ),
        typical=(0.709, 0.160),
    ),
    "ict-hp": Row("probeselect.evaluators.heads:IctHpEvaluator", parts=("ict", "hp")),
    "scene-clip": Row(_CLIP, WEIGHTS / "scene-clip"),
    "scene-itm": Row(_BLIP, WEIGHTS / "scene-itm", {"head": "itm"}),
    "scene-check": Row("probeselect.evaluators.scene:SceneCheck", WEIGHTS / "scene-check"),
}


def evaluator_names() -> list[str]:
    """Return all names that load: the table's, then those of plug-ins."""
    return list(dict.fromkeys([*EVALUATORS, *plugin_names()]))


def parse_evaluators(text: str) -> list[tuple[str, str | None]]:
    """Split "NAME,NAME=FOLDER,NAME=URL,NAME=exec:COMMAND" into names and weights; see parse_evaluator.

    A command may hold commas, so it takes the rest of the text and stands last. A comma in a URL is written %2C.
    """
    lists, command, rest = text.partition("exec:")
    parts = lists.split(",")
    parts[-1] += command + rest
    return [parse_evaluator(part) for part in parts if part]


def parse_evaluator(text: str) -> tuple[str, str | None]:
    """Split "NAME", "NAME=FOLDER", "NAME=URL" or "NAME=exec:COMMAND" into name and weights (None: the row's own).

    Where a URL or command follows, NAME is free; a bare URL or command is its own name. Raises UsageError on another
    unknown name, on an empty folder, and on a free name of other characters than letters, digits, ".", "_" and "-".
    """
    if text.startswith(ELSEWHERE):
        return text, None
    name, given, weights = text.partition("=")
    if not weights.startswith(ELSEWHERE):
        _check_name(name)
    elif not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"evaluator {text!r}: name it with letters, digits, '.', '_' or '-' before the '='")
    if given and not weights:
        raise UsageError(f"evaluator {text!r}: nothing after '=', write {name}=FOLDER or {name}")
    return name, weights or None


def load_evaluator(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> Evaluator:
    """Load an evaluator: of the table, of a plug-in, or one elsewhere.

    Args:
        name: a name of the table or of a plug-in; or a URL, or "exec:COMMAND"; or any, if `weights` is one of those.
        weights: folder (or hub id) to use instead of the row's own; or a URL, or "exec:COMMAND".
        device: where it runs and where rewards come back; None means the CPU.
        dtype: of its weights, for models of transformers; None means float32.
        batch_size: images it sees at once, for models of transformers; None means the class's own number.

    Raises:
        UsageError: unknown name, or a batch size below 1.
        ProbeSelectError: weights that are not there, cannot be read or do not fit the model.
    """
    address = name if name.startswith(ELSEWHERE) else str(weights or "")
    given = {"dtype": dtype, "batch_size": batch_size}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    evaluator: Evaluator
    if address.startswith(ELSEWHERE):
        from probeselect.evaluators.remote import RemoteEvaluator

        options.pop("dtype", None)
        evaluator = RemoteEvaluator(address, device=device or "cpu", **options)
    else:
        try:
            evaluator = _loader(name)(weights, device=device or "cpu", **options)
        except UsageError:
            raise
        except ProbeSelectError as error:
            raise ProbeSelectError(f"evaluator {name}: {error}; {name}=FOLDER names another folder") from error
    evaluator.name = name
    return evaluator


def off_the_typical(name: str, found: float) -> str | None:
    """Return one line if a mean reward is further than 6 typical standard deviations from the typical mean.

    None where it is near, and for evaluators without a published mean.
    """
    row = EVALUATORS.get(name)
    if row is None or row.typical is None:
        return None
    mean, std = row.typical
    if not abs(found - mean) > 6 * std:
        return None
    return f"{name}: the mean reward is {found:.4g}, typical is {mean:g} with a spread of {std:g}: check its weights"


def where_from(name: str) -> str:
    """Return one line that says which published files a row is made of, and what makes its folder."""
    row = EVALUATORS[name]
    if row.parts:
        return f"made of {' and '.join(row.parts)}: convert each into FOLDER/NAME, e.g. FOLDER/{row.parts[0]}"
    if row.published is None:
        return "not published as a pickle"
    files = " and ".join(row.published.files)
    return f"published as a pickle, {files} of {row.published.where}: convert it once"


def _loader(name: str) -> Callable[..., Evaluator]:
    """Return what loads an evaluator: loader(weights or None, device=..., and dtype and batch_size where chosen)."""
    _check_name(name)
    row = EVALUATORS[name] if name in EVALUATORS else load_plugin(name)
    if isinstance(row, Row):
        return partial(_load_row, name, row)
    if not callable(row):
        raise ProbeSelectError(f"plug-in {plugin_names()[name]} is {type(row).__name__}, must be a Row or a callable")
    return partial(_load_with_defaults, row)


def _load_row(name: str, row: Row, weights: str | Path | None, **options: Any) -> Evaluator:
    source = weights or row.weights
    if source is None:
        raise ProbeSelectError(where_from(name) if name in EVALUATORS else "its row names no weights")
    module, attribute = row.loader.split(":")
    load = getattr(import_module(module), attribute)
    taken = inspect.signature(load).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):  # no model of transformers
        options = {key: value for key, value in options.items() if key in taken}
    evaluator: Evaluator = load(source, **row.options, **options)
    return evaluator


def _load_with_defaults(
    load: Callable[..., Evaluator],
    weights: str | Path | None,
    dtype: torch.dtype | None = None,
    batch_size: int = 32,
    **options: Any,
) -> Evaluator:
    import torch

    return load(weights, dtype=dtype or torch.float32, batch_size=batch_size, **options)


def _check_name(name: str) -> None:
    plugins = plugin_names()
    if name not in EVALUATORS and name not in plugins:
        raise UsageError(f"unknown evaluator {name!r}; valid names: {', '.join(evaluator_names())}")
    if name in EVALUATORS and name in plugins:
        raise UsageError(
            f"evaluator {name!r} is probeselect's own and the plug-in {plugins[name]}: uninstall the latter"
        )
