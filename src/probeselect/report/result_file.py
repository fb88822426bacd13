"""result.json and the pictures beside it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probeselect.report.contact_sheet import contact_sheet
from probeselect.sampling.results import CandidateResult, Result

FORMAT = 1


def result_fields(result: Result, *, model: str, scorer: str, policy: str, folder: str = "") -> dict[str, Any]:
    """One prompt's entry of result.json. `folder` stands before the pictures' names."""
    best = result.kept[0] if result.kept else result.candidates[0]
    return {
        "format": FORMAT,
        "prompt": result.prompt,
        "model": model,
        "scorer": scorer,
        "policy": policy,
        "steps": result.cost.denoiser_rows_all // len(result.candidates),
        "rungs": [score.rung for score in best.scores],
        "candidates": [_candidate_fields(candidate, folder) for candidate in result.candidates],
        "kept": [candidate.seed for candidate in result.kept],
        **({"decisions": result.decisions} if result.decisions else {}),
        "cost": {
            "denoiser_rows": result.cost.denoiser_rows,
            "denoiser_rows_all": result.cost.denoiser_rows_all,
            "ratio": round(result.cost.ratio, 6),
            "seconds": round(result.cost.seconds, 4),
            "seconds_scoring": round(result.cost.seconds_scoring, 4),
            "largest_wave": result.cost.largest_wave,
            "wave_halvings": result.cost.wave_halvings,
        },
    }


def _candidate_fields(candidate: CandidateResult, folder: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "seed": candidate.seed,
        "completed_steps": candidate.completed_steps,
        "kept": candidate.kept,
        "image": folder + image_name(candidate) if candidate.kept else None,
        "scores": [
            {"rung": s.rung, "completed_steps": s.completed_steps, "score": _number(s.score)} for s in candidate.scores
        ],
        "rewards": {name: _number(value) for name, value in candidate.rewards.items()},
    }
    return fields | ({"reasons": candidate.reasons} if candidate.reasons else {})


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def image_name(candidate: CandidateResult) -> str:
    return f"seed-{candidate.seed}.png"


def write_results(results: Sequence[Result], folder: Path, **about: str) -> Any:
    """Write result.json, the kept pictures and the contact sheet; several prompts get a folder each.

    Returns what result.json holds. result.json is written last: where it is, everything is.
    """
    several = len(results) > 1
    entries = []
    for index, result in enumerate(results):
        sub = f"prompt-{index:03d}/" if several else ""
        (folder / sub).mkdir(parents=True, exist_ok=True)
        for candidate in result.kept:
            candidate.image.save(folder / sub / image_name(candidate))
        contact_sheet(result).save(folder / sub / "contact_sheet.png")
        entries.append(result_fields(result, **about, folder=sub))
    content = entries if several else entries[0]
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    partial.replace(folder / "result.json")
    return content
