"""Where a denoiser has its image tokens: height, width and frames, read from the arguments of one call.

Knows how each architecture is told the size of what it makes. Does not know what a block returns (taps.py).
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from probeselect.core.errors import ProbeSelectError


@dataclass(frozen=True)
class TokenGrid:
    """Where one denoiser call has its image tokens: frame by frame, each frame row by row."""

    height: int
    width: int
    tokens: int  # of the image and of the reference images behind it
    text_lengths: Tensor | None = None  # [rows], where each row has its own number of text tokens
    frames: int = 1  # latent frames of a clip

    @property
    def image(self) -> int:
        """Tokens of the image itself."""
        return self.frames * self.height * self.width

    @classmethod
    def of(
        cls, denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], axes: str = "NCFHW"
    ) -> "TokenGrid":
        """Read the grid from the arguments of a denoiser call, whatever the aspect ratio.

        axes: of latents of five dimensions, see `Family.latents`.
        """
        bound = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs)
        bound.apply_defaults()
        given = {name: value for name, value in bound.arguments.items() if value is not None}
        if "img_ids" in given:  # FLUX and its like: [tokens, (image, y, x, ...)], some with a dimension of rows
            ids = given["img_ids"].flatten(0, -2)[: given["img_ids"].shape[-2]]
            return cls(*_extent(ids[ids[:, 0] == ids[0, 0]]), len(ids))  # reference images have another image number
        if "img_shapes" in given:  # Qwen: per row a list of (frames, height, width), the image's own first; or it alone
            shapes = given["img_shapes"][0] if isinstance(given["img_shapes"][0], list) else given["img_shapes"][:1]
            if "img_mask" in given:  # Qwen-Image 2.1: the image's own last, behind text and reference images
                shapes = shapes[-1:]
            _, height, width = shapes[0]
            return cls(height, width, sum(prod(shape) for shape in shapes))
        latents = list(given.values())[1]  # the first argument after self
        latent = latents[0][None] if isinstance(latents, list) else latents
        if latent.ndim == 3 and "position_ids" in given:  # Krea 2, Ideogram 4: the same, of text and then image
            ids = given["position_ids"].flatten(0, -2)[-latent.shape[1] :]
            own = ids[ids[:, 0] == ids[-1, 0]]
            return cls(*_extent(own), len(own))
        if latent.ndim == 3 and {"num_frames", "height", "width"} <= given.keys():  # LTX
            frames, height, width = (given[name] for name in ("num_frames", "height", "width"))
            return cls(height, width, latent.shape[1], None, frames)
        if latent.ndim < 4:
            raise ProbeSelectError(
                f"model: cannot tell the height and width of the image tokens of {type(denoiser).__name__}: "
                f"its input is {list(latent.shape)} and it is given neither `img_ids` nor `img_shapes`"
            )
        sizes = dict(zip(axes if latent.ndim == 5 else "NCHW", latent.shape, strict=True))
        config = getattr(denoiser, "config", None)
        patch = given.get("patch_size") or getattr(config, "patch_size", None) or 1
        *times, down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
        time = times[0] if times else getattr(config, "patch_size_t", None) or 1
        height, width, frames = sizes["H"] // down, sizes["W"] // across, -(-sizes.get("F", 1) // time)
        mask = given.get("encoder_attention_mask")
        lengths = mask.sum(1) if mask is not None and mask.ndim == 2 else None
        return cls(height, width, frames * height * width, lengths, frames)

    def to_map(self, tokens: Tensor) -> Tensor:
        """[rows, frames * height * width, C] -> [rows, C, height, width], the mean over the frames"""
        return tokens.transpose(1, 2).unflatten(2, (self.frames, self.height, self.width)).mean(2)


def _extent(ids: Tensor) -> tuple[int, int]:
    """Height and width that the positions [tokens, (image, y, x, ...)] of one image span."""
    height, width = ((ids.amax(0) - ids.amin(0))[1:3].int() + 1).tolist()
    return height, width
