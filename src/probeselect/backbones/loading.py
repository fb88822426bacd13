"""From a name, a folder, a hub id or a pipeline object to a Backbone.

Loads safetensors and JSON only, never pickles and never code that comes with a model. Does not know what the
taps are used for.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probeselect.backbones.families import Family, family_of
from probeselect.backbones.taps import Tap
from probeselect.core.description import Description
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.files import read_json
from probeselect.core.names import DTYPES
from probeselect.embedded import SHIPPED

_DTYPES = dict(zip(DTYPES, (torch.float32, torch.bfloat16, torch.float16), strict=True))


@dataclass(frozen=True)
class Backbone:
    """A frozen diffusers pipeline with what is known of its family, and the taps to read."""

    pipe: Any
    family: Family
    taps: tuple[Tap, ...]
    name: str

    @property
    def denoiser(self) -> nn.Module:
        """The module that the pipeline calls at every step."""
        return getattr(self.pipe, self.family.denoiser)

    def tap(self, name: str) -> Tap:
        """The tap of that name. Raises UsageError where the denoiser has nothing that it could read."""
        tap = Tap.parse(name, self.family)
        tap.check(getattr(self.denoiser, "_orig_mod", self.denoiser))  # torch.compile(denoiser) wraps it
        return tap

    def describe(self) -> Description:
        """What a probe must fit."""
        denoiser = getattr(self.denoiser, "_orig_mod", self.denoiser)
        channels = getattr(getattr(denoiser, "config", None), "in_channels", None)
        return Description(
            denoiser=type(denoiser).__name__,
            architecture=_architecture(denoiser),
            latent_channels=channels if isinstance(channels, int) else None,
        )


def load_backbone(
    model: Any,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tap: str | Sequence[str] | None = None,
    revision: str | None = None,
) -> Backbone:
    """Load a backbone.

    model: "embedded", "embedded-mmdit", a folder in the diffusers format, a hub id, a pipeline object or a Backbone.
    dtype: "fp32", "bf16", "fp16" or a torch dtype. Default: bf16 for hub and folder models on an accelerator,
    else fp32; an object keeps its own.
    device: default cuda, else mps, else cpu; an object stays where it is.
    tap: module path(s) of the denoiser, see `Tap.parse`. Default: the family's, none if the family is unknown.
    revision: branch, tag or commit of a model on the hub.

    Raises UsageError for an argument that cannot be right, ProbeSelectError for a model that does not load.
    """
    from diffusers import DiffusionPipeline

    wanted = dtype_named(dtype)
    if isinstance(model, Backbone):
        model, name = model.pipe, model.name
    elif isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        device = torch.device(device or default_device())
        default = torch.float32 if name in SHIPPED or device.type == "cpu" else torch.bfloat16
        model, wanted = _from_pretrained(name, wanted or default, revision), None
    elif isinstance(model, DiffusionPipeline):
        name = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
        _refuse_train_mode(model)
    else:
        raise UsageError(
            f"model: {type(model).__name__} is not a name, a folder, a hub id or a diffusers pipeline object"
        )
    if wanted is not None or device is not None:
        model.to(device=device, dtype=wanted)
    backbone = Backbone(model, family_of(model), (), name)
    if tap is None:
        tap = [] if backbone.family.tap is None else backbone.family.default_tap(backbone.denoiser)
    return replace(backbone, taps=tuple(map(backbone.tap, [tap] if isinstance(tap, str) else tap)))


def dtype_named(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its short name; UsageError for an unknown one."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    return _DTYPES[dtype] if isinstance(dtype, str) else dtype


def commit_of(name: str, revision: str | None = None) -> str:
    """The commit of the hub that a loaded model came from; "" for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if name in SHIPPED or os.path.exists(Path(name).expanduser()):
        return ""
    path = try_to_load_from_cache(name, "model_index.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else revision or ""


def default_device() -> str:
    """The best kind of device that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _from_pretrained(name: str, dtype: torch.dtype, revision: str | None) -> Any:
    from diffusers import DiffusionPipeline

    folder = SHIPPED[name].pipeline if name in SHIPPED else Path(name).expanduser()
    local = name in SHIPPED or os.path.exists(folder)
    if local and not (folder / "model_index.json").is_file():
        raise UsageError(f"model: {name!r} is no diffusers folder: there is no {folder / 'model_index.json'}")
    if not local and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UsageError(f"model: {name!r} is neither a folder that exists nor a hub id such as 'owner/name'")
    source = str(folder) if local else name
    absent = _left_out(folder / "model_index.json") if local else {}
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, revision=revision, **absent)
    except Exception as error:  # whatever the libraries raise over a foreign folder or the network
        where = f"from {folder}" if local else "from the hub (there is no folder of that name)"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProbeSelectError(f"model: cannot load {name!r} {where}: {reason}") from error
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    if name == "embedded-mmdit":
        from probeselect.embedded.attention import ZeroTokensAttention

        pipe.transformer.set_attn_processor(ZeroTokensAttention(pipe.tokenizer_max_length))
    return pipe


def _left_out(index: Path) -> dict[str, None]:
    """The components that a folder was saved without, such as the T5 of SD3: diffusers wants to be told of each."""
    try:
        entries = read_json(index, dict[str, Any])
    except UsageError:
        return {}  # diffusers says what is wrong with it
    return {name: None for name, entry in entries.items() if entry == [None, None]}


def _refuse_train_mode(pipe: Any) -> None:
    """Dropout would make two runs of one seed differ."""
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module) and component.training:
            raise UsageError(f"model: {name} of the pipeline is in train mode; call pipe.{name}.eval() first")


def _architecture(denoiser: nn.Module) -> str:
    """Digest of the class and of the configured fields that differ from the class's defaults.

    Fields at their default are left out: a diffusers release with a new field must not change the digest.
    """
    config: Mapping[str, Any] = getattr(denoiser, "config", None) or {}
    defaults = {name: p.default for name, p in inspect.signature(type(denoiser).__init__).parameters.items()}
    fields = {
        key: value
        for key, value in _plain(dict(config)).items()
        if not key.startswith("_") and key != "quantization_config" and value != _plain(defaults.get(key))
    }
    text = json.dumps([type(denoiser).__name__, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """As JSON would give it back, so that a tuple equals the list that a saved config holds."""
    return json.loads(json.dumps(value, default=str))
