"""Clips as files: animated WebP and GIF by Pillow, MP4 by diffusers and the packages of the extra `video`."""

import itertools
from importlib.util import find_spec
from pathlib import Path

from probeselect.core.errors import UsageError
from probeselect.evaluators.pictures import Picture, frames_of

FPS = 16  # frames a second, as most video models are trained on
CLIP_FORMATS = ("webp", "mp4", "gif")
QUALITY = 90  # of WebP, from 0 to 100


def clip_name(seed: int, kind: str = "webp") -> str:
    """Return the file name of a kept clip."""
    return f"seed-{seed}.{kind}"


def check_clip_format(kind: str) -> None:
    """Raise UsageError for a format that is unknown, or that needs packages which are not there."""
    if kind not in CLIP_FORMATS:
        raise UsageError(f"clip format {kind!r}: unknown, need one of {', '.join(CLIP_FORMATS)}")
    if kind == "mp4" and not _can_write_mp4():
        raise UsageError("mp4: needs imageio and ffmpeg; install probeselect[video], or save clips as webp")


def _can_write_mp4() -> bool:
    """diffusers asks imageio where it is installed, which needs ffmpeg then, and else OpenCV."""
    return find_spec("imageio_ffmpeg" if find_spec("imageio") else "cv2") is not None


def save_clip(frames: Picture, path: Path, fps: int = FPS) -> None:
    """Save a clip of any output type, in the format that the ending of `path` names: .webp, .mp4 or .gif.

    WebP is lossy with quality 90 and plays for ever, as GIF does. The sides of an MP4 are made even.

    Raises UsageError for another ending, for an MP4 without the packages it needs, and for what is no picture.
    """
    kind = path.suffix.removeprefix(".").lower()
    check_clip_format(kind)
    if fps < 1:
        raise UsageError(f"fps: got {fps}, must be at least 1")
    images = [frame.convert("RGB") for frame in frames_of(frames)]
    if kind == "webp":
        ends = [round(1000 * i / fps) for i in range(len(images) + 1)]  # ms; so that rounding does not add up
        durations = [end - start for start, end in itertools.pairwise(ends)]
        images[0].save(
            path, save_all=True, append_images=images[1:], duration=durations, loop=0, lossless=False, quality=QUALITY
        )
        return
    from diffusers.utils import export_to_gif, export_to_video

    if kind == "gif":
        export_to_gif(images, str(path), fps=fps)
    else:
        export_to_video(images, str(path), fps=fps, macro_block_size=2)
