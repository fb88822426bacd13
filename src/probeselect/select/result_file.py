"""result.json and the pictures and clips beside it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probeselect.evaluators.pictures import frames_of, is_clip
from probeselect.select.clips import FPS, check_clip_format, clip_name, save_clip
from probeselect.select.contact_sheet import contact_sheet
from probeselect.select.records import CandidateResult, PromptResult

FORMAT = 1


def result_fields(result: PromptResult, folder: str = "", clips: str = "webp") -> dict[str, Any]:
    """One prompt's entry of result.json. `folder` stands before the pictures' names, `clips` is the format of clips."""
    best = result.kept[0] if result.kept else result.candidates[0]
    return {
        "format": FORMAT,
        "prompt": result.prompt,
        **{name: result.about.get(name, "") for name in ("model", "scorer", "policy")},
        "steps": result.cost.denoiser_rows_all // len(result.candidates),
        "rungs": [score.rung for score in best.scores],
        "candidates": [_candidate_fields(candidate, folder, clips) for candidate in result.candidates],
        "kept": [candidate.seed for candidate in result.kept],
        **({"decisions": [each.fields() for each in result.decisions]} if result.decisions else {}),
        **({"notes": result.notes} if result.notes else {}),
        "cost": result.cost.fields(),
    }


def _candidate_fields(candidate: CandidateResult, folder: str, clips: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "seed": candidate.seed,
        "completed_steps": candidate.completed_steps,
        "kept": candidate.kept,
        "image": folder + image_name(candidate, clips) if candidate.kept else None,
        "scores": [
            {"rung": s.rung, "completed_steps": s.completed_steps, "score": _number(s.score)} for s in candidate.scores
        ],
        "rewards": {name: _number(value) for name, value in candidate.rewards.items()},
    }
    for name, found in (("reasons", candidate.reasons), ("flags", candidate.flags)):
        if found:
            fields[name] = found
    return fields


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def image_name(candidate: CandidateResult, clips: str = "webp") -> str:
    """Return the file name of a kept picture, or of a kept clip, whose format is `clips`."""
    return clip_name(candidate.seed, clips) if is_clip(candidate.image) else f"seed-{candidate.seed}.png"


def write_results(results: Sequence[PromptResult], folder: Path, *, clips: str = "webp", fps: int = FPS) -> Any:
    """Write result.json, what was kept and the contact sheet; several prompts get a folder each.

    Pictures of any output type are saved as PNG, clips in the format `clips` ("webp", "mp4" or "gif") with `fps` frames
    a second. Returns what result.json holds. result.json is written last: where it is, everything is.

    Raises UsageError for a format that cannot be written here, and for what is no picture (latents).
    """
    check_clip_format(clips)
    several = len(results) > 1
    entries = []
    for index, result in enumerate(results):
        sub = f"prompt-{index:03d}/" if several else ""
        (folder / sub).mkdir(parents=True, exist_ok=True)
        for candidate in result.kept:
            _save(candidate, folder / sub / image_name(candidate, clips), fps)
        contact_sheet(result).save(folder / sub / "contact_sheet.png")
        entries.append(result_fields(result, sub, clips))
    content = entries if several else entries[0]
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    partial.replace(folder / "result.json")
    return content


def _save(candidate: CandidateResult, path: Path, fps: int) -> None:
    if is_clip(candidate.image):
        save_clip(candidate.image, path, fps)
    else:
        frames_of(candidate.image)[0].save(path)
