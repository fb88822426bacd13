"""log.jsonl of a training: a line for every epoch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from probeselect.core.errors import UsageError
from probeselect.core.files import parse_json, read_bytes


class HeadFigures(msgspec.Struct, frozen=True):
    """Of one head at one rung on the val prompts; None where there was nothing to measure."""

    spearman: float | None  # within prompts
    gain: float | None  # share of the best-of-N gain


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of a training, on its val prompts."""

    epoch: Annotated[int, Meta(ge=0, le=10**9)]
    loss: float | None
    spearman: float | None  # mean over heads and rungs
    best: bool  # so far
    figures: dict[str, HeadFigures] = msgspec.field(default_factory=dict)  # EVALUATOR@RUNG -> its figures


def log_bytes(lines: Iterable[LogLine]) -> bytes:
    """What `read_log` reads."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def read_log(path: Path) -> list[LogLine]:
    """Raises UsageError naming the file, the line and the field."""
    try:
        lines = read_bytes(path).splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return [parse_json(line, LogLine, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
