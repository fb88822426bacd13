"""The scorers by name. A new one is a class in a file of its own and a row here; see `core.stage.Scorer`.

Whoever has the row has the scorer: `generate` runs it live, `evaluate` and `plan` ask it of stored data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from probeselect.backbones.loading import Backbone
from probeselect.core.stage import Scorer, Stage
from probeselect.data.dataset import Dataset
from probeselect.data.table import Table
from probeselect.probe.scorer import ProbeScorer
from probeselect.scorers.attention import AttentionScorer
from probeselect.scorers.context import Context, context_of
from probeselect.scorers.scorers import FunctionScorer, FusionScorer, PreviewScorer, RandomScorer


@dataclass(frozen=True)
class Row:
    """`load` is given what follows the name in the table, and where the scorer will be asked."""

    load: Callable[[str, Context], Scorer]
    of: Literal["nothing", "evaluator", "probe"] = "nothing"  # what follows the name
    previews: bool = False  # stored previews must have been judged


def _preview(evaluator: str, context: Context) -> PreviewScorer:
    return PreviewScorer(evaluator if evaluator in context.judged else context.evaluator(evaluator))


def _probe(name: str, context: Context) -> ProbeScorer:
    probe = context.probe(name)
    probe.check_fits(context.about)
    scorer = ProbeScorer(probe, context.head, name)
    for tap in scorer.taps:
        context.check_tap(tap)
    scorer.check_bases(context.bases)
    return scorer


def _fusion(name: str, context: Context) -> FusionScorer:
    probe = _probe(name, context)
    preview = PreviewScorer(probe.formula) if probe.formula else _preview(probe.head, context)
    return FusionScorer(probe, preview, f"fusion:{name}")


SCORERS = {  # name -> row; a name that ends with ":" has something after it, and "" is a probe's folder or hub id
    "preview:": Row(_preview, "evaluator", previews=True),
    "": Row(_probe, "probe"),
    "fusion:": Row(_fusion, "probe", previews=True),
    "attention": Row(lambda _, context: AttentionScorer(context.tokenizer)),
    "random": Row(lambda _, context: RandomScorer()),
}


def load_scorer(
    name: str | Scorer | Callable[[Stage], Any],
    home: Backbone | Dataset,
    head: str | None = None,
    *,
    evaluator_device: str | torch.device | None = None,
    evaluator_dtype: str | torch.dtype | None = None,
) -> Scorer:
    """ "random", "attention", "preview:EVALUATOR[=FOLDER]", "embedded" (what ships for the backbone), a probe's folder
    or hub id, or "fusion:PROBE" with one of these probes.

    home: the backbone that runs, or the dataset whose candidates are to be scored, see `scores_of`. head: which of its
    evaluators a probe predicts for; None: its first. evaluator_device, evaluator_dtype: of an evaluator that judges
    previews; default: where the pipeline computes, in float32.

    Raises UsageError for a name that is none of these, and for a scorer that does not fit the backbone or the dataset.
    """
    if not isinstance(name, str):
        return name if isinstance(name, Scorer) else FunctionScorer(name)
    context = replace(context_of(home), head=head, evaluator_device=evaluator_device, evaluator_dtype=evaluator_dtype)
    key, colon, rest = name.partition(":")
    if key + colon not in SCORERS:
        key, colon, rest = "", "", name
    scorer = SCORERS[key + colon].load(rest, context)
    for tap in scorer.taps:
        context.check_tap(tap)
    return scorer


def scorers_for(evaluator: str, context: Context) -> Iterator[Scorer]:
    """Every scorer of the table that may foresee the rewards of an evaluator in stored data, with each of
    `context.probes`; `can_read` says at which rungs the data hold what it reads.

    Raises UsageError for a probe that does not fit.
    """
    context = replace(context, head=evaluator)
    rows = {name: row for name, row in SCORERS.items() if evaluator in context.judged or not row.previews}
    yield from (row.load(evaluator, context) for row in rows.values() if row.of == "evaluator")
    for probe in context.probes:
        yield from (row.load(probe, context) for row in rows.values() if row.of == "probe")
    yield from (row.load("", context) for row in rows.values() if row.of == "nothing")


def can_read(scorer: Scorer, table: Table, rung: float) -> bool:
    """Whether stored data hold what a scorer reads at a rung."""
    own: Callable[[Table, float], bool] | None = getattr(scorer, "can_read", None)
    if own is not None:
        return own(table, rung)
    maps = all(f"map/{tap}/{rung:g}" in table.tensors for tap in scorer.taps)
    return maps and (table.gallery is not None or not scorer.previews)
