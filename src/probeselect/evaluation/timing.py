"""Seconds of a schedule, from runs of `generate`: their result.json says what was denoised and scored, and how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from probeselect.core.errors import UsageError
from probeselect.core.files import read_json
from probeselect.core.names import short_name

Amount = Annotated[float, Meta(ge=0, le=1e12)]


class TimedCost(msgspec.Struct, frozen=True):
    """What a run took; `seconds` is all of it."""

    denoiser_rows: Amount
    seconds: Amount
    seconds_scoring: Amount


class TimedCandidate(msgspec.Struct, frozen=True):
    """How often a candidate was scored; the scores themselves tell no time."""

    scores: list[Any]


class TimedRun(msgspec.Struct, frozen=True):
    """The part of a prompt's entry in result.json that tells of time; `select/result_file.py` writes it."""

    scorer: str
    cost: TimedCost
    candidates: list[TimedCandidate]
    format: Literal[1] = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of one denoiser row, encoding and decoding included, and of scoring one candidate once, by scorer."""

    row: float
    score: Mapping[str, float]

    def seconds(self, scorer: str, rows: int, scored: int) -> float | None:
        """What a schedule takes; None for a scorer that no run has used."""
        if scored and scorer not in self.score:
            return None
        return rows * self.row + (scored * self.score[scorer] if scored else 0.0)

    def scoring_cost(self, scorer: str) -> float:
        """Rows that scoring one candidate once is worth. Raises UsageError for a scorer that no run has used."""
        if scorer not in self.score:
            raise UsageError(f"no run of scorer {scorer} was timed, but of {', '.join(self.score) or 'none'}")
        return self.score[scorer] / self.row


def read_timing(files: Sequence[Path]) -> Timing:
    """From result.json files of one backbone on one machine, a scorer each. Raises UsageError naming the file."""
    rows = seconds = 0.0
    scored: dict[str, list[float]] = {}
    for path in files:
        found = read_json(path, TimedRun | list[TimedRun])  # type: ignore[arg-type]
        runs: list[TimedRun] = found if isinstance(found, list) else [found]
        for run in runs:
            rows += run.cost.denoiser_rows
            seconds += run.cost.seconds - run.cost.seconds_scoring
            of_scorer = scored.setdefault(short_name(run.scorer), [0.0, 0.0])
            of_scorer[0] += run.cost.seconds_scoring
            of_scorer[1] += sum(len(candidate.scores) for candidate in run.candidates)
    if not rows or seconds <= 0:
        raise UsageError(f"{', '.join(map(str, files))}: no denoiser rows were run, or in no time")
    return Timing(seconds / rows, {name: taken / count for name, (taken, count) in scored.items() if count})
