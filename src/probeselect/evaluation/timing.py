"""Seconds of a schedule, from runs of `generate`: their result.json says what was denoised and scored, and how long."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probeselect.core.errors import UsageError
from probeselect.core.names import short_name


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
        try:
            content = json.loads(path.read_bytes())
            for result in content if isinstance(content, list) else [content]:
                cost = result["cost"]
                rows += cost["denoiser_rows"]
                seconds += cost["seconds"] - cost["seconds_scoring"]
                count = sum(len(candidate["scores"]) for candidate in result["candidates"])
                found = scored.setdefault(short_name(result["scorer"]), [0.0, 0.0])
                found[0], found[1] = found[0] + cost["seconds_scoring"], found[1] + count
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: is no result.json of generate ({' '.join(str(error).split())})") from error
    if not rows:
        raise UsageError(f"{', '.join(map(str, files))}: no denoiser rows were run")
    return Timing(seconds / rows, {name: taken / count for name, (taken, count) in scored.items() if count})
