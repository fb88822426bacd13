"""What a pipeline gives out of one candidate, made PIL: the one door for whoever looks at pictures or saves them.

A picture is a still or a clip, in any of diffusers' output types:

| `output_type` | still                | clip                    | values                       |
|---------------|----------------------|-------------------------|------------------------------|
| "pil"         | PIL image, any mode  | list of PIL images      |                              |
| "np"          | numpy [H, W, C]      | numpy [F, H, W, C]      | floats in [0, 1], or uint8   |
| "pt"          | torch [C, H, W]      | torch [F, C, H, W]      | floats in [0, 1], or uint8   |

C is 1, 3 or 4 and F >= 1. A list or tuple of stills of any kind is a clip too. NaN and infinite values become black;
whoever must know of them looks at the values themselves. Everything here is pure: no argument is changed.

    clip = torch.rand(81, 3, 48, 64)
    is_clip(clip)                      # True
    len(to_pil(clip))                  # 81 images of 64 x 48 px
    frames_of(clip, most=3)            # frames 1, 41 and 81
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from probeselect.core.errors import UsageError

Picture: TypeAlias = Image.Image | NDArray[Any] | Tensor | Sequence[Any]

CHANNELS = (1, 3, 4)
TOLERANCE = 0.1  # how far a value may lie outside [0, 1]; floats of a pipeline's postprocessing are clipped


def is_clip(picture: Picture) -> bool:
    """Return whether a picture is a clip: a list or tuple, or an array with four dimensions."""
    return _is_list(picture) or (_is_array(picture) and picture.ndim == 4)


def to_pil(picture: Picture) -> Image.Image | list[Image.Image]:
    """Return a still as a PIL image and a clip as a list of them. PIL images are handed on as they are.

    Raises UsageError for what is no picture: latents, values outside [0, 1], a clip without frames.
    """
    frames = frames_of(picture)
    return frames if is_clip(picture) else frames[0]


def frames_of(picture: Picture, most: int | None = None) -> list[Image.Image]:
    """Return the frames of a clip as PIL images, a still as one frame.

    Args:
        most: convert only so many, evenly spaced, the first and the last among them; None means all.

    Raises:
        UsageError: as `to_pil`; or `most` is below 1.
    """
    frames: Any = picture if is_clip(picture) else [picture]
    return [_to_image(frames[i]) for i in sampled(frame_count(picture), most)]


def frame_count(picture: Picture) -> int:
    """Return the number of frames: 1 for a still. Raises UsageError for a clip without any."""
    count = len(picture) if is_clip(picture) else 1  # type: ignore[arg-type]
    if count == 0:
        raise UsageError("a clip without frames cannot be shown, saved or evaluated")
    return count


def sampled(count: int, most: int | None = None) -> list[int]:
    """Return the indices of at most `most` of `count` frames, evenly spaced, the first and the last among them.

    One frame is the first. Raises UsageError if `most` is below 1.
    """
    if most is None or most >= count:
        return list(range(count))
    if most < 1:
        raise UsageError(f"most: got {most}, must be at least 1")
    return [int(i) for i in np.linspace(0, count - 1, most).round()]


def _is_list(picture: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(picture, (list, tuple))


def _is_array(picture: Any) -> TypeGuard[NDArray[Any] | Tensor]:
    return isinstance(picture, (np.ndarray, Tensor))


def _to_image(still: Any) -> Image.Image:
    if isinstance(still, Image.Image):
        return still
    if not _is_array(still):
        raise UsageError(f"{type(still).__name__}: is no picture; need a PIL image, a numpy array or a torch tensor")
    values = _channels_last(still)
    if values.dtype != np.uint8:
        values = _to_bytes(values)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def _channels_last(still: NDArray[Any] | Tensor) -> NDArray[Any]:
    """Return [H, W, C], floats or uint8."""
    layout, place = ("[C, H, W]", 0) if isinstance(still, Tensor) else ("[H, W, C]", -1)
    if still.ndim != 3 or still.shape[place] not in CHANNELS:
        raise UsageError(
            f"{list(still.shape)}: is no picture {layout} with 1, 3 or 4 channels; latents cannot be shown, saved or "
            'evaluated, leave output_type="latent" out'
        )
    if isinstance(still, Tensor):
        still = still.detach().movedim(0, -1).cpu()
        still = (still.float() if still.is_floating_point() else still).numpy()
    if still.dtype != np.uint8 and not np.issubdtype(still.dtype, np.floating):
        raise UsageError(f"a picture of {still.dtype}: need floats from 0 to 1, or uint8")
    return still


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return floats in [0, 1] as uint8, rounded as diffusers rounds; what is not finite is 0."""
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise UsageError(
            f"values from {low:.3g} to {high:.3g} are no picture, one has values from 0 to 1; latents cannot be shown, "
            'saved or evaluated, leave output_type="latent" out'
        )
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
