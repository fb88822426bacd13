"""What a pipeline gives back: a picture or clip a candidate, and what is wrong with it.

Knows the fields of diffusers' outputs and the names of what decodes latents. A picture whose latents or whose decoded
values are not finite comes out black and says nothing of itself, so both are looked at while they are numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from probeselect.core.errors import ProbeSelectError

ROUNDING = 0.02  # root mean square of what a decoder may differ by from batch to batch, in half precision too
NOT_FINITE, SAFETY, BLACK = "not finite", "safety checker", "black"
_DECODERS = ("vae", "movq", "vqgan", "vqvae")
_FIELDS = ("images", "image", "frames", "videos", "rgb", "image_embeddings", "image_embeds", "audios")


def pictures_of(output: Any, n: int) -> list[Any]:
    """What each of n candidates got. Raises ProbeSelectError where that cannot be told."""
    found = next((value for name in _FIELDS if (value := getattr(output, name, None)) is not None), None)
    if found is None and isinstance(output, tuple | list):
        found = output[0]
    if found is None:
        raise ProbeSelectError(f"model: the pipeline gives a {type(output).__name__} without images or frames")
    pictures = list(found)
    if n == 1 and len(pictures) != 1:
        return [pictures]  # several pictures of one candidate: frames, layers
    if len(pictures) != n:
        raise ProbeSelectError(f"model: the pipeline gave {len(pictures)} pictures for {n} candidates")
    return pictures


def alike(a: Any, b: Any) -> bool:
    """Whether two pictures are of the same latents, decoded in batches of other sizes: equal but for rounding."""
    a, b = _numbers(a), _numbers(b)
    if a is None or b is None or a.shape != b.shape:
        return a is b
    both = np.isfinite(a) & np.isfinite(b)
    return bool(np.sqrt(np.mean((a - b)[both] ** 2)) <= ROUNDING) if both.any() else True


def _numbers(picture: Any) -> NDArray[np.float64] | None:
    """Values in [0, 1]; None where a picture's parts are not alike."""
    if isinstance(picture, list | tuple):
        parts = [_numbers(part) for part in picture]
        shapes = {None if part is None else part.shape for part in parts}
        return None if len(shapes) != 1 or None in shapes else np.stack([p for p in parts if p is not None])
    if isinstance(picture, Image.Image):
        return np.asarray(picture).astype(np.float64) / 255
    values = picture.detach().float().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    return values.astype(np.float64) if values.dtype.kind in "fiu" else None


class Watch:
    """Which of n candidates have broken down in a pipeline call; nothing waits for the device until `flags`."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._latents: Tensor | None = None
        self._decoded: Tensor | None = None

    def latents(self, latents: Any) -> None:
        """The latents that are going to be decoded; of several calls the last counts."""
        self._latents = self._finite(latents)

    @contextmanager
    def decoding(self, pipe: Any) -> Iterator[None]:
        """While open, looks at what the pipeline's decoder makes."""
        parts: list[Any] = [getattr(pipe, name, None) for name in _DECODERS]
        found = [part for part in parts if hasattr(part, "decode")]
        wrapped = [(part, vars(part).get("decode"), part.decode) for part in found]
        for part, _, usual in wrapped:
            part.decode = self._looking(usual)
        try:
            yield
        finally:
            for part, own, _ in wrapped:
                if own is None:
                    del part.decode
                else:
                    part.decode = own

    def _looking(self, usual: Any) -> Any:
        def decode(*args: Any, **kwargs: Any) -> Any:
            output = usual(*args, **kwargs)
            self._decoded = self._finite(output[0])
            return output

        return decode

    def _finite(self, values: Any) -> Tensor | None:
        """[n] of bools, where the rows of `values` are those of n candidates."""
        if not isinstance(values, Tensor) or not values.ndim or len(values) % self.n or not values.is_floating_point():
            return None
        rows = torch.isfinite(values).reshape(len(values), -1).all(1)
        return rows if len(rows) == self.n else rows.reshape(self.n, -1).all(1)

    def broken(self) -> list[bool]:
        """For each candidate, whether its latents or its decoded picture hold values that are not finite."""
        seen = [values.cpu() for values in (self._latents, self._decoded) if values is not None]
        return [any(not bool(values[i]) for values in seen) for i in range(self.n)]

    def flags_so_far(self) -> list[list[str]]:
        """What is wrong with each candidate's latents, in words."""
        return [[NOT_FINITE] if broken else [] for broken in self.broken()]

    def flags(self, output: Any, pictures: Sequence[Any]) -> list[list[str]]:
        """What is wrong with each candidate's picture, in words."""
        unsafe = getattr(output, "nsfw_content_detected", None) or getattr(output, "nsfw_detected", None) or []
        told = []
        for i, broken in enumerate(self.broken()):
            flags = [NOT_FINITE] if broken or _holds_nan(pictures[i]) else []
            if i < len(unsafe) and bool(unsafe[i]):
                flags.append(SAFETY)
            if not flags and _is_black(pictures[i]):
                flags.append(BLACK)
            told.append(flags)
        return told


def _holds_nan(picture: Any) -> bool:
    if isinstance(picture, Tensor):
        return not bool(torch.isfinite(picture).all()) if picture.is_floating_point() else False
    return isinstance(picture, np.ndarray) and picture.dtype.kind == "f" and not bool(np.isfinite(picture).all())


def _is_black(picture: Any) -> bool:
    if isinstance(picture, list):
        return bool(picture) and all(_is_black(frame) for frame in picture)
    if isinstance(picture, Image.Image):
        return picture.convert("RGB").getextrema() == ((0, 0),) * 3
    return isinstance(picture, Tensor | np.ndarray) and not bool((picture != 0).any())
