"""The evaluators by name: one row each says what loads it, from which weights, with which settings.

Does not know any model; a row's code is imported only when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.embedded import WEIGHTS
from probeselect.evaluators.base import Evaluator

_CLIP = "probeselect.evaluators.clip:ClipEvaluator"
_BLIP = "probeselect.evaluators.blip:BlipEvaluator"


@dataclass(frozen=True)
class Row:
    """One evaluator: `loader`, as "module:callable", is called as loader(weights, **options, device=...)."""

    loader: str
    weights: str | Path  # hub id or folder
    options: Mapping[str, Any] = field(default_factory=dict)


EVALUATORS: dict[str, Row] = {
    "clip-b16": Row(_CLIP, "openai/clip-vit-base-patch16"),
    "clip-b32": Row(_CLIP, "openai/clip-vit-base-patch32"),
    "pickscore": Row(
        _CLIP,
        "yuvalkirstain/PickScore_v1",
        {"scale": None, "processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"},
    ),
    "blip-itc": Row(_BLIP, "Salesforce/blip-itm-base-coco", {"head": "itc"}),
    "blip-itm": Row(_BLIP, "Salesforce/blip-itm-base-coco", {"head": "itm"}),
    "scene-clip": Row(_CLIP, WEIGHTS / "scene-clip"),
    "scene-itm": Row(_BLIP, WEIGHTS / "scene-itm", {"head": "itm"}),
    "scene-check": Row("probeselect.evaluators.scene:SceneCheck", WEIGHTS / "scene-check"),
}


def parse_evaluator(text: str) -> tuple[str, str | None]:
    """Split "NAME" or "NAME=FOLDER" into name and weights (None: the row's own).

    Raises UsageError on an unknown name and on an empty folder.
    """
    name, given, weights = text.partition("=")
    _row(name)
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
    """Load an evaluator by its name in EVALUATORS.

    Args:
        name: a name of the table.
        weights: folder (or hub id) to use instead of the row's own.
        device: where it runs; None means the CPU.
        dtype: of its weights, for models of transformers; None means float32.
        batch_size: images it sees at once, for models of transformers; None means the class's own number.

    Raises:
        UsageError: unknown name, or a batch size below 1.
        ProbeSelectError: weights that are not there, cannot be read or do not fit the model.
    """
    row = _row(name)
    module, attribute = row.loader.split(":")
    given = {"dtype": dtype, "batch_size": batch_size}
    options = {**row.options, **{key: value for key, value in given.items() if value is not None}}
    loader = getattr(import_module(module), attribute)
    try:
        evaluator: Evaluator = loader(weights or row.weights, device=device or "cpu", **options)
    except UsageError:
        raise
    except ProbeSelectError as error:
        raise ProbeSelectError(f"evaluator {name}: {error}; {name}=FOLDER names another folder") from error
    evaluator.name = name
    return evaluator


def _row(name: str) -> Row:
    if name not in EVALUATORS:
        raise UsageError(f"unknown evaluator {name!r}; valid names: {', '.join(EVALUATORS)}")
    return EVALUATORS[name]
