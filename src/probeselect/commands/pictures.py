"""Pictures and clips of `generate`: opens the files that were given, and checks them against the pipeline's class."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probeselect.backbones.requirements import (
    CONTROL,
    FPS,
    FRAMES,
    IMAGE,
    MASK,
    STRENGTH,
    check_stills,
    keywords,
    makes_clips,
    missing,
    usual_fps,
)
from probeselect.core.errors import UsageError


@dataclass(frozen=True)
class Inputs:
    """What a user gave besides the prompt, by option, and what is asked for: clips in a format, or a record."""

    given: dict[str, Any]
    clip_format: str | None = None
    recording: bool = False

    def keywords(self, pipeline: type, arguments: Sequence[str] = ()) -> dict[str, Any]:
        """Keywords of the pipeline's call.

        arguments: the keywords that are given otherwise. Raises UsageError for what the class does not take, for what
        it needs and is not given, and for a clip format or a record where it makes no clips or nothing but clips.
        """
        if self.recording:
            check_stills(pipeline, "--record")
        if self.clip_format is not None and not makes_clips(pipeline):
            raise UsageError(f"--clip-format: {pipeline.__name__} makes no clips; leave it out")
        found = keywords(pipeline, self.given)
        if line := missing(pipeline, {*arguments, *found}):
            raise UsageError(line)
        return found

    def check_control(self, pipe: Any) -> None:
        """Raise UsageError unless there is a control picture for each control net of a loaded pipeline."""
        nets = getattr(pipe, "controlnet", None) or getattr(pipe, "adapter", None)
        count = len(getattr(nets, "nets", None) or getattr(nets, "adapters", None) or [nets])
        pictures = self.given.get(CONTROL)
        found = len(pictures) if isinstance(pictures, list) else 1
        if pictures is not None and nets is not None and found != count:
            raise UsageError(f"{CONTROL}: {found} given for {count} control net{'s' * (count > 1)}")

    def fps(self, pipeline: type, otherwise: int) -> int:
        """Frames a second of saved clips: those given, or what the pipeline's call has by default."""
        return int(self.given.get(FPS) or usual_fps(pipeline, otherwise))


def inputs(
    image: Path | None,
    mask: Path | None,
    control_images: Sequence[Path],
    strength: float | None,
    frames: int | None,
    fps: int | None,
    clip_format: str | None,
    recording: bool,
) -> Inputs:
    """Open the files and check the numbers. Raises UsageError, one line each, for what cannot be right."""
    if strength is not None and not 0 < strength <= 1:
        raise UsageError(f"{STRENGTH} {strength:g}: must be above 0 and at most 1")
    for option, number in ((FRAMES, frames), (FPS, fps)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: must be at least 1")
    if clip_format is not None:
        from probeselect.select.clips import check_clip_format

        check_clip_format(clip_format)
    if recording and (image or mask or control_images):
        raise UsageError("--record: runs with a given picture cannot be recorded yet; leave out --record")
    control = [open_picture(path, CONTROL) for path in control_images]
    given = {
        IMAGE: open_picture(image, IMAGE) if image else None,
        MASK: open_picture(mask, MASK, "L") if mask else None,
        CONTROL: control if len(control) > 1 else next(iter(control), None),
        STRENGTH: strength,
        FRAMES: frames,
        FPS: fps,
    }
    return Inputs({option: value for option, value in given.items() if value is not None}, clip_format, recording)


def open_picture(path: Path, option: str, mode: str = "RGB") -> Any:
    """Return the PIL picture of a file, upright and in a mode. `option` opens the one line of every UsageError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    most = Image.MAX_IMAGE_PIXELS or math.inf
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the next lines say it
            with Image.open(path) as opened:
                if opened.width * opened.height > most:
                    raise Image.DecompressionBombError
                upright = ImageOps.exif_transpose(opened)
                if upright.mode.startswith("I;16"):  # Pillow would make everything above 255 white
                    upright = upright.point(lambda value: value * (1 / 256)).convert("L")
                return upright.convert(mode)
    except FileNotFoundError:
        raise UsageError(f"{option} {path}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{option} {path}: is a folder, must be a picture") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{option} {path}: has more than {most / 1e6:.0f} million pixels") from None
    except UnidentifiedImageError:
        raise UsageError(f"{option} {path}: is not a picture that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:  # a damaged file, by its format
        raise UsageError(f"{option} {path}: cannot be read ({error})") from error
