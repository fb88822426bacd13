"""What is known of each diffusers family: one row of data per family, nothing else.

Knows where the denoiser is, how guidance orders its rows or calls, where the image is in a block's output and
which block to tap. Does not know how to read a tap (taps.py) or how to load a pipeline (loading.py).
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import nn

from probeselect.core.errors import UsageError


class Layout(NamedTuple):
    """Where the image is in a block's output; None = find out from the shapes, or say that it is ambiguous.

    `stream`: index into a tuple. `image`: place of the image tokens in a sequence that text shares.
    """

    stream: int | None = None
    image: Literal["first", "last", "after text"] | None = None


@dataclass(frozen=True)
class Family:
    """One row.

    pipelines: class names without their variant words and "Pipeline" (see `family_of`).
    guidance: "batched" = one denoiser call on two equal parts of rows, of which part `conditional` is
    conditional (one part while guidance is off); "calls" = one call per branch, of which call `conditional` of a
    step is conditional; "none" = one call on one part, guidance is embedded.
    tap: path of the default tap, or the rule that finds it in the denoiser; None = no default.
    layouts: name of a list of blocks -> layout of the output of each of its blocks.
    denoiser: attribute of the pipeline.
    """

    name: str
    pipelines: tuple[str, ...]
    guidance: Literal["batched", "calls", "none"]
    conditional: int
    tap: str | Callable[[nn.Module], str] | None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    denoiser: str = "transformer"

    def default_tap(self, denoiser: nn.Module) -> str:
        """Path of the tap to use when none is named; UsageError if this family has none."""
        if self.tap is None:
            raise UsageError(
                f"tap: {self.name} is not in the table of families and has no default tap; "
                f"name a block of its {self.denoiser}, such as tap='transformer_blocks.12'"
            )
        return self.tap if isinstance(self.tap, str) else self.tap(denoiser)

    def layout(self, path: str) -> Layout:
        """Layout of the output of the module at `path`; known for whole blocks only."""
        blocks, _, index = path.rpartition(".")
        return self.layouts.get(blocks, Layout()) if index.isdecimal() else Layout()


def _block(blocks: str, fraction: float, at_most: int | None = None) -> Callable[[nn.Module], str]:
    """Rule: the block at `fraction` of the depth of the list `blocks`, but no deeper than index `at_most`."""

    def path(denoiser: nn.Module) -> str:
        depth = len(getattr(denoiser, blocks))
        index = min(int(fraction * depth), depth - 1)
        return f"{blocks}.{index if at_most is None else min(index, at_most)}"

    return path


def _second_last(blocks: str) -> Callable[[nn.Module], str]:
    return lambda denoiser: f"{blocks}.{len(getattr(denoiser, blocks)) - 2}"


_UP_3 = "up_blocks.2.resnets.1"  # the paper's tap
_BLOCK_20 = _block("transformer_blocks", 20 / 24, at_most=20)  # the reference's, for 24 blocks and for 38
_MIDDLE = _block("transformer_blocks", 0.5)
_LATE = _block("transformer_blocks", 0.55)
_LATE_LAYER = _block("layers", 0.55)
_LAST = _block("transformer_blocks", 1)

_TEXT_IMAGE = Layout(stream=1)
_TEXT_THEN_IMAGE = Layout(image="last")
_JOINT = {"transformer_blocks": _TEXT_IMAGE}
_JOINT_JOINT = {"transformer_blocks": _TEXT_IMAGE, "single_transformer_blocks": _TEXT_IMAGE}
_JOINT_SEQUENCE = {"transformer_blocks": _TEXT_IMAGE, "single_transformer_blocks": _TEXT_THEN_IMAGE}
_AURA = {"joint_transformer_blocks": _TEXT_IMAGE, "single_transformer_blocks": _TEXT_THEN_IMAGE}

FAMILIES: tuple[Family, ...] = (
    Family("SD 1/2", ("StableDiffusion",), "batched", 1, _UP_3, denoiser="unet"),
    Family("LCM", ("LatentConsistencyModel",), "none", 0, _UP_3, denoiser="unet"),
    Family("SDXL", ("StableDiffusionXL",), "batched", 1, "up_blocks.1.resnets.1", denoiser="unet"),
    Family("SD3", ("StableDiffusion3",), "batched", 1, _BLOCK_20, _JOINT),
    Family("FLUX.1", ("Flux",), "calls", 0, _MIDDLE, _JOINT_JOINT),
    Family("FLUX.2", ("Flux2", "Flux2Klein"), "calls", 0, _LAST, _JOINT_SEQUENCE),
    Family("Chroma", ("Chroma",), "calls", 0, _LAST, _JOINT_SEQUENCE),
    Family("Qwen-Image", ("QwenImage",), "calls", 0, _LATE, _JOINT),
    Family("Z-Image", ("ZImage",), "batched", 0, _LATE_LAYER, {"layers": Layout(image="first")}),
    Family("Lumina 2", ("Lumina2",), "calls", 0, _LATE_LAYER, {"layers": Layout(image="after text")}),
    Family("PixArt", ("PixArtSigma", "PixArtAlpha"), "batched", 1, _LATE),
    Family("Sana", ("Sana",), "batched", 1, _LATE),
    Family("HunyuanDiT", ("HunyuanDiT",), "batched", 1, _block("blocks", 0.55)),
    Family("AuraFlow", ("AuraFlow",), "batched", 1, _block("single_transformer_blocks", 0.5), _AURA),
    Family("CogView4", ("CogView4",), "calls", 0, _LATE, {"transformer_blocks": Layout(stream=0)}),
    Family("Kandinsky 2.2", ("KandinskyV22",), "batched", 1, _second_last("up_blocks"), denoiser="unet"),
    Family("Kandinsky 3", ("Kandinsky3",), "batched", 1, _second_last("up_blocks"), denoiser="unet"),
)

# Words that leave the order of rows and calls as it is. Others change it (PAG adds perturbed rows,
# InstructPix2Pix puts the conditional part first), so only class names made of these words belong to a family.
_WORDS = "(Img2Img|Inpaint(ing)?|ControlNet|Union|Control|Adapter|Upscale|Depth2Img|Fill|Kontext|Edit|Plus|Combined)*"


def family_of(pipe: Any) -> Family:
    """The row of a pipeline object, found by the name of its class or of one of its base classes.

    A pipeline of no known family gets a row without default tap that assumes what most pipelines do: one call
    per step, conditional rows last. UsageError if the pipeline has neither a `transformer` nor a `unet`.
    """
    for cls in type(pipe).__mro__:
        for family in FAMILIES:
            if re.fullmatch(f"({'|'.join(family.pipelines)}){_WORDS}Pipeline", cls.__name__):
                return family
    name = type(pipe).__name__
    for denoiser in ("transformer", "unet"):
        if isinstance(getattr(pipe, denoiser, None), nn.Module):
            return Family(name, (), "batched", -1, None, denoiser=denoiser)
    raise UsageError(f"model: {name} has neither a `transformer` nor a `unet`, so there is nothing to watch")


def prompt_keywords(pipe: Any) -> tuple[str, ...]:
    """Keywords of the pipeline's call that hold a text per candidate: prompt, negative_prompt, prompt_2 ..."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return tuple(name for name in parameters if re.fullmatch(r"(negative_)?prompt(_\d)?", name))
