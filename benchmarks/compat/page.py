"""docs/compatibility.md, written from rows. Nothing in it is typed by hand but the sentences above the tables."""

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date

import diffusers
import torch

from compat.trial import EXACT, NO_SEED, OUTCOMES, REFUSED, RESTARTED, Row

_MEANINGS = {
    EXACT: "every kept picture equals the picture that the stock pipeline makes from that seed alone",
    RESTARTED: "the same, but kept candidates were computed twice up to the rung, because the denoiser remembers",
    NO_SEED: "two equal stock calls differ; the run says so, and its pictures equal the stock ones after "
    "`torch.manual_seed(seed)`",
    REFUSED: "one line says why; no step had been computed, unless the line is about the steps themselves or about "
    "previews",
}


def page(rows: Sequence[Row]) -> str:
    """Markdown of all rows, by section, in their order."""
    counts = Counter(row.outcome for row in rows)
    classes = len({row.subject for row in rows if not row.subject.startswith("family ")})
    lines = [
        "# Compatibility, measured",
        "",
        "Written by `python benchmarks/compatibility.py`; do not edit. "
        f"{date.today().isoformat()}, diffusers {diffusers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}.",
        "",
        f"{len(rows)} rows over {classes} pipeline classes, each on a tiny model with random weights, in float32 on a "
        "CPU. Unless its kind says otherwise, a row is a call with 4 candidates of which 2 are kept, stopped after "
        "40 % (25 % in rows of 8 steps), in batches of the sampler's own choice. Pictures are compared with those of a "
        "pipeline built anew: the largest difference of any value, in a range of 1, may be 0.001 (one level of 255 "
        "where the output is PIL). Also checked: two seeds make two pictures, the cost that is reported is what a "
        "layer of the denoiser has met, global random generators stand where they stood, and the pipeline's next "
        "stock picture is what it was before.",
        "",
        "| outcome | rows | meaning |",
        "|---|---|---|",
        *(f"| {outcome} | {counts[outcome]} | {_MEANINGS[outcome]} |" for outcome in OUTCOMES),
        "",
        "Columns: *steps* are the denoiser steps computed for all candidates, over those of finishing every one; "
        "*batch* is the most candidates that shared a call.",
    ]
    for group in dict.fromkeys(row.group for row in rows):
        lines += ["", f"## {group}", "", "| pipeline | kind | outcome | steps | batch | what the run says |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_cells(row) for row in rows if row.group == group]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> str:
    steps = f"{row.steps} / {row.steps_all}" if row.steps_all else "-"
    remark = ["two seeds give one picture here"] if row.blind else []
    said = " ".join(_escaped([*row.sentences, *remark]))
    return f"| {row.subject} | {row.kind} | {row.outcome} | {steps} | {row.wave or '-'} | {said} |"


def _escaped(sentences: Iterable[str]) -> Iterable[str]:
    return (" ".join(sentence.split()).replace("|", "\\|").replace("<", "&lt;") for sentence in sentences)
