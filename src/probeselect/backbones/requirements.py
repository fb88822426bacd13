"""What the call of a pipeline class takes and needs besides a prompt: pictures, masks, control pictures, frames.

Read from the signature of the class's `__call__` and from the words of its name, so it is known before any weight is
loaded. Does not open pictures and does not load pipelines.
"""

import inspect
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from probeselect.core.errors import UsageError
from probeselect.core.files import read_json
from probeselect.embedded import SHIPPED

# What a user can give on the command line, and how it is called in a sentence.
IMAGE, MASK, CONTROL, STRENGTH, FRAMES, FPS = "--image", "--mask", "--control-image", "--strength", "--frames", "--fps"
_NOUNS = {
    IMAGE: "a picture", MASK: "a mask", CONTROL: "a control picture", STRENGTH: "a strength",
    FRAMES: "a number of frames", FPS: "frames a second",
}  # fmt: skip
_FOLDERS = {
    IMAGE: "an image-to-image", MASK: "an inpainting", CONTROL: "a ControlNet", STRENGTH: "an image-to-image",
    FRAMES: "a text-to-video",
}  # fmt: skip
_PLACES = {IMAGE: "FILE", MASK: "FILE", CONTROL: "FILE", STRENGTH: "X", FRAMES: "N", FPS: "N"}
_KEYWORDS = {
    IMAGE: ("image",),
    MASK: ("mask_image", "control_mask", "mask"),
    CONTROL: ("control_image", "image"),
    STRENGTH: ("strength",),
    FRAMES: ("num_frames", "video_length", "frames"),
    FPS: ("frame_rate", "fps", "target_fps"),
}  # of each, the first that the call takes

# Words of class names -> the keyword that is needed where the call takes it.
_CHANGES = "Img2Img|Inpaint|Fill|Refiner"  # a given picture, also where a control picture is given
_NEEDS = (
    (rf"{_CHANGES}|Upscale|SuperResolution|Depth2Img|Edit|InstructPix2Pix|Layered|CycleDiffusion", ("image",)),
    (r"ImageToVideo|I2VGen|VideoToWorld|Adapter|ImageVariation", ("image",)),
    (r"Inpaint|Fill|DiffEdit", ("mask_image", "control_mask", "mask_video")),
    (r"DiffEdit", ("image_latents",)),
    (r"(Img2Img|Inpainting)SuperResolution", ("original_image",)),
    (r"Control(?!net)", ("control_image", "control_video", "conditioning_frames")),
    (r"ControlNetUnion", ("control_mode",)),
    (r"VideoToVideo|EasyAnimateInpaint", ("video",)),
)  # fmt: skip
_OPTIONAL = {
    "image": r"BriaFiboEdit.*|JoyImageEdit.*",  # they make a picture of the prompt alone, too
    "control_video": r"EasyAnimateControl.*",
}
_INSTEAD = {"image": ("image_embeds", "image_embeddings", "video"), "control_video": ("control_video_latents",)}
_CLIPS = {"num_frames", "video_length", "frames", "num_videos_per_prompt", "video"}


class ModelIndex(msgspec.Struct):
    """The part of diffusers' model_index.json that names the pipeline."""

    class_name: str = msgspec.field(name="_class_name")


def class_of(model: Any, revision: str | None = None) -> type | None:
    """Return the pipeline class of a model by name, where that is known without loading or asking the hub.

    model: "embedded" and its like, a folder, or a hub id whose model_index.json is in the local cache. None for other
    models, and for a class that is not one of diffusers, or that needs packages which are not installed.
    """
    import diffusers

    index = _index_of(model, revision) if isinstance(model, str | os.PathLike) else None
    try:
        name = read_json(index, ModelIndex).class_name if index else ""
    except UsageError:
        return None  # loading says what is wrong with it
    found = getattr(diffusers, name, None)
    return found if inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline) else None


def _index_of(model: str | os.PathLike[str], revision: str | None) -> Path | None:
    name = os.fspath(model)
    folder = SHIPPED[name].pipeline if name in SHIPPED else Path(name).expanduser()
    if folder.is_dir():
        return folder / "model_index.json"
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "model_index.json", revision=revision)
    except ValueError:  # no hub id; loading says so
        return None
    return Path(found) if isinstance(found, str) else None


def takes(pipeline: type) -> dict[str, str]:
    """Return by option (IMAGE ... FPS) the keyword that a pipeline class takes it as; without those it does not take.

    The control picture of a text-to-image pipeline is often called `image`; then it takes no IMAGE.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    found = {option: next((n for n in names if n in parameters), "") for option, names in _KEYWORDS.items()}
    controlled = re.search("ControlNet|Control|Adapter", pipeline.__name__) is not None
    if found[CONTROL] == "image" and not (controlled and not re.search(_CHANGES, pipeline.__name__)):
        found[CONTROL] = ""
    if found[CONTROL] == found[IMAGE]:
        found[IMAGE] = ""
    if found[MASK] == "mask" and "image" not in parameters:  # of a clip
        found[MASK] = ""
    return {option: name for option, name in found.items() if name}


def keywords(pipeline: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given by option as keywords of the call. Raises UsageError for what it does not take."""
    known, clips = takes(pipeline), makes_clips(pipeline)
    for option in given:
        if option in known or (option == FPS and clips):  # then of the saved file only
            continue
        if option in (FRAMES, FPS) and not clips:
            raise UsageError(f"{option}: {pipeline.__name__} makes no clips; leave out {option}")
        other = CONTROL if option == IMAGE else IMAGE
        hint = f"leave out {option}, or give the folder of {_FOLDERS[option]} pipeline"
        if option in (IMAGE, CONTROL) and other in known:
            hint = f"give it as {other}"
        raise UsageError(f"{option}: {pipeline.__name__} takes no {_NOUNS[option].removeprefix('a ')}; {hint}")
    return {known[option]: value for option, value in given.items() if option in known}


def needs(pipeline: type) -> list[str]:
    """Return the keywords besides the prompt that a pipeline class cannot be called without."""
    parameters = inspect.signature(pipeline.__call__).parameters
    name, found = pipeline.__name__, _without_default(pipeline)
    for words, names in _NEEDS:
        if re.search(words, name):
            found += [next((key for key in names if key in parameters), "")]
    control = takes(pipeline).get(CONTROL)
    found += [control] if control and re.search("ControlNet|Control", name) else []
    return [
        key
        for key in dict.fromkeys(found)
        if key not in ("", "prompt") and not (key in _OPTIONAL and re.fullmatch(_OPTIONAL[key], name))
    ]


def _without_default(pipeline: type) -> list[str]:
    parameters = list(inspect.signature(pipeline.__call__).parameters.values())[1:]  # without self
    return [each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]


def missing(pipeline: type, given: Collection[str]) -> str | None:
    """Return one line that says what a pipeline class needs and was not given, and how to give it; None if nothing is.

    given: the keywords of the call.
    """
    always = _without_default(pipeline)
    absent = [
        key
        for key in needs(pipeline)
        if key not in given and (key in always or not any(other in given for other in _INSTEAD.get(key, ())))
    ]
    if not absent:
        return None
    options = {keyword: option for option, keyword in takes(pipeline).items()}
    nouns = " and ".join(_NOUNS[options[key]] if key in options else key for key in absent)
    python = ", ".join(f"{key}=..." for key in absent)
    if unknown := [key for key in absent if key not in options]:
        how = f"the command line has no option for {' and '.join(unknown)}; give {python} in Python"
    else:
        how = f"give {' and '.join(f'{options[key]} {_PLACES[options[key]]}' for key in absent)} (in Python: {python})"
    return f"{pipeline.__name__} needs {nouns}: {how}"


def makes_clips(pipeline: type) -> bool:
    """Return whether a pipeline class makes clips rather than stills."""
    return not _CLIPS.isdisjoint(inspect.signature(pipeline.__call__).parameters)


def check_stills(pipeline: type, what: str) -> None:
    """Raise UsageError where a pipeline class makes clips. `what` cannot keep them: `collect`, `--record`."""
    if makes_clips(pipeline):
        raise UsageError(f"{what}: clips cannot be collected yet, and {pipeline.__name__} makes clips")


def usual_fps(pipeline: type, otherwise: int) -> int:
    """Return how many frames a second a pipeline class takes its clips to have, by the default of its call."""
    parameter = inspect.signature(pipeline.__call__).parameters.get(takes(pipeline).get(FPS, ""))
    value = parameter.default if parameter else None
    return max(round(value), 1) if isinstance(value, int | float) else otherwise
