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

    `stream`: index into a tuple. `image`: place of the image tokens in a sequence that text or padding shares.
    `rows`: dimension of the rows, 1 where the sequence comes first.
    """

    stream: int | None = None
    image: Literal["first", "last", "after text"] | None = None
    rows: int = 0


@dataclass(frozen=True)
class Family:
    """One row.

    pipelines: class names without their variant words and "Pipeline" (see `family_of`).
    guidance: "batched" = one denoiser call on two equal parts of rows, of which part `conditional` is
    conditional (one part while guidance is off); "calls" = one call per branch, of which call `conditional` of a
    step is conditional; "none" = one call on one part, guidance is embedded or has a denoiser of its own.
    tap: path of the default tap, or the rule that finds it in the denoiser; None = no default.
    layouts: name of a list of blocks -> layout of the output of each of its blocks.
    denoiser: attribute of the pipeline. Of two that take turns (Wan 2.2) it is the one of the first steps.
    parts: how many parts of rows a batched call may have: 3 where text and a given picture guide apart.
    latents: axes of latents of five dimensions: N rows, C channels, F frames, H height, W width.
    """

    name: str
    pipelines: tuple[str, ...]
    guidance: Literal["batched", "calls", "none"]
    conditional: int
    tap: str | Callable[[nn.Module], str] | None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    denoiser: str = "transformer"
    parts: int = 2
    latents: str = "NCFHW"

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


def _block(fraction: float, *lists: str, at_most: int | None = None) -> Callable[[nn.Module], str]:
    """Rule: the block at `fraction` of the depth of all `lists` of blocks, but no deeper than index `at_most`."""

    def path(denoiser: nn.Module) -> str:
        paths = [f"{blocks}.{index}" for blocks in lists for index in range(len(getattr(denoiser, blocks)))]
        index = min(int(fraction * len(paths)), len(paths) - 1)
        return paths[index if at_most is None else min(index, at_most)]

    return path


def _second_last(blocks: str) -> Callable[[nn.Module], str]:
    return lambda denoiser: f"{blocks}.{len(getattr(denoiser, blocks)) - 2}"


_UP_3 = "up_blocks.2.resnets.1"  # the paper's tap
_UP_2 = "up_blocks.1.resnets.1"  # where there are only three
_BLOCK_20 = _block(20 / 24, "transformer_blocks", at_most=20)  # the reference's, for 24 blocks and for 38
_MIDDLE = _block(0.5, "transformer_blocks")
_LATE = _block(0.55, "transformer_blocks")
_LATE_LAYER = _block(0.55, "layers")
_LATE_BLOCK = _block(0.55, "blocks")
_LATE_VISUAL = _block(0.55, "visual_transformer_blocks")
_LATE_OF_TWO = _block(0.55, "transformer_blocks", "single_transformer_blocks")
_LATE_OF_STREAMS = _block(0.55, "double_stream_blocks", "single_stream_blocks")
_LAST = _block(1, "transformer_blocks")

_IMAGE_TEXT, _TEXT_IMAGE = Layout(stream=0), Layout(stream=1)  # a tuple of two sequences
_FIRST, _LAST_TOKENS = Layout(image="first"), Layout(image="last")  # of a sequence that text shares
_JOINT = {"transformer_blocks": _TEXT_IMAGE}
_JOINT_JOINT = {"transformer_blocks": _TEXT_IMAGE, "single_transformer_blocks": _TEXT_IMAGE}
_JOINT_SEQUENCE = {"transformer_blocks": _TEXT_IMAGE, "single_transformer_blocks": _LAST_TOKENS}
_IMAGE_FIRST = {"transformer_blocks": _IMAGE_TEXT, "single_transformer_blocks": _IMAGE_TEXT}
_SEQUENCE = {"transformer_blocks": _LAST_TOKENS}
_AURA = {"joint_transformer_blocks": _TEXT_IMAGE, "single_transformer_blocks": _LAST_TOKENS}
# a picture that is no square is padded to the longest sequence that the model knows
_HIDREAM = {"double_stream_blocks": Layout(stream=0, image="first"), "single_stream_blocks": _FIRST}

FAMILIES: tuple[Family, ...] = (
    Family("SD 1/2", ("StableDiffusion",), "batched", 1, _UP_3, denoiser="unet"),
    Family("LCM", ("LatentConsistencyModel",), "none", 0, _UP_3, denoiser="unet"),
    Family("SDXL", ("StableDiffusionXL",), "batched", 1, _UP_2, denoiser="unet"),
    Family("SD3", ("StableDiffusion3",), "batched", 1, _BLOCK_20, _JOINT),
    Family("FLUX.1", ("Flux",), "calls", 0, _MIDDLE, _JOINT_JOINT),
    Family("FLUX.2", ("Flux2", "Flux2Klein"), "calls", 0, _LAST, _JOINT_SEQUENCE),
    Family("Chroma", ("Chroma",), "calls", 0, _LAST, _JOINT_SEQUENCE),
    Family("Qwen-Image", ("QwenImage",), "calls", 0, _LATE, _JOINT),
    Family("Z-Image", ("ZImage",), "batched", 0, _LATE_LAYER, {"layers": _FIRST}),
    Family("Lumina 2", ("Lumina2",), "calls", 0, _LATE_LAYER, {"layers": Layout(image="after text")}),
    Family("PixArt", ("PixArtSigma", "PixArtAlpha"), "batched", 1, _LATE),
    Family("Sana", ("Sana",), "batched", 1, _LATE),
    Family("HunyuanDiT", ("HunyuanDiT",), "batched", 1, _LATE_BLOCK),
    Family("AuraFlow", ("AuraFlow",), "batched", 1, _block(0.5, "single_transformer_blocks"), _AURA),
    Family("CogView4", ("CogView4",), "calls", 0, _LATE, {"transformer_blocks": _IMAGE_TEXT}),
    Family("Kandinsky 2.2", ("KandinskyV22",), "batched", 1, _second_last("up_blocks"), denoiser="unet"),
    Family("Kandinsky 3", ("Kandinsky3",), "batched", 1, _second_last("up_blocks"), denoiser="unet"),
    Family("Kolors", ("Kolors",), "batched", 1, _UP_2, denoiser="unet"),
    Family("HiDream", ("HiDreamImage",), "batched", 1, _LATE_OF_STREAMS, _HIDREAM),
    Family("Qwen-Image 2.1", ("QwenImage21",), "calls", 0, _LATE, _SEQUENCE),
    Family("HunyuanImage 2.1", ("HunyuanImage",), "calls", 0, _LATE_OF_TWO, _IMAGE_FIRST),
    Family("Kandinsky 5", ("Kandinsky5T2I", "Kandinsky5I2I"), "calls", 0, _LATE_VISUAL, latents="NFHWC"),
    Family("CogView3+", ("CogView3Plus",), "batched", 1, _LATE, {"transformer_blocks": _IMAGE_TEXT}),
    Family("Bria", ("Bria",), "batched", 1, _LATE_OF_TWO, _JOINT_JOINT),
    Family("Bria FIBO", ("BriaFibo",), "batched", 1, _LATE_OF_TWO, _JOINT_SEQUENCE),
    Family("PRX", ("PRX", "PRXPixel"), "batched", 1, _LATE_BLOCK),
    Family("Ovis-Image", ("OvisImage",), "calls", 0, _LATE_OF_TWO, _JOINT_JOINT),
    Family("LongCat-Image", ("LongCatImage",), "calls", 0, _LATE_OF_TWO, _JOINT_JOINT),
    Family("Krea 2", ("Krea2",), "calls", 0, _LATE, _SEQUENCE),
    Family("Sana Sprint", ("SanaSprint",), "none", 0, _LATE),
    Family("Lumina", ("Lumina",), "batched", 0, _LATE_LAYER),
    Family("NucleusMoE-Image", ("NucleusMoEImage",), "calls", 0, _LATE),
    Family("Cosmos 2", ("Cosmos2TextToImage",), "calls", 0, _LATE),
    Family("DeepFloyd IF", ("IF",), "batched", 1, _UP_3, denoiser="unet"),
    Family("OmniGen", ("OmniGen",), "batched", 0, _LATE_LAYER, {"layers": _LAST_TOKENS}, parts=3),
    Family("GLM-Image", ("GlmImage",), "calls", 0, _LATE, {"transformer_blocks": _IMAGE_TEXT}),
    Family("ERNIE-Image", ("ErnieImage",), "batched", 1, _LATE_LAYER, {"layers": Layout(image="first", rows=1)}),
    Family("Ideogram 4", ("Ideogram4",), "none", 0, _LATE_LAYER, {"layers": _LAST_TOKENS}),
    Family("InstructPix2Pix", ("StableDiffusionInstructPix2Pix",), "batched", 0, _UP_3, denoiser="unet", parts=3),
    Family("InstructPix2Pix XL", ("StableDiffusionXLInstructPix2Pix",), "batched", 0, _UP_2, denoiser="unet", parts=3),
    Family("Wan", ("Wan", "WanImageToVideo", "WanVideoToVideo", "WanVACE"), "calls", 0, _LATE_BLOCK),
    Family("LTX-Video", ("LTX", "LTXImageToVideo"), "batched", 1, _LATE),
    Family(
        "CogVideoX",
        ("CogVideoX", "CogVideoXImageToVideo", "CogVideoXVideoToVideo", "CogVideoXFun"),
        "batched",
        1,
        _LATE,
        {"transformer_blocks": _IMAGE_TEXT},
        latents="NFCHW",
    ),
    Family("HunyuanVideo", ("HunyuanVideo", "HunyuanVideoImageToVideo"), "calls", 0, _LATE_OF_TWO, _IMAGE_FIRST),
    Family("Mochi", ("Mochi",), "batched", 1, _LATE, {"transformer_blocks": _IMAGE_TEXT}),
)

# Words that leave the order of rows and calls as it is. Others change it (PAG adds perturbed rows), so only class
# names made of these words belong to a family.
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
