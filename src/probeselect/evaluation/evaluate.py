"""`evaluate`: how well scorers choose, from score tables or from a dataset, as a report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.score_table import ScoreTable
from probeselect.evaluation.distances import distance_rows, network_of
from probeselect.evaluation.report import Report, report_of
from probeselect.evaluation.scoring import Watch, all_scores
from probeselect.evaluation.sheets import sheets
from probeselect.evaluation.sources import Scorers, Source, open_source
from probeselect.evaluation.timing import Timing


def evaluate(
    source: Source,
    scorers: Scorers | None = None,
    *,
    evaluator: str = "",
    rewards: str | Path | None = None,
    network: str | Callable[[Tensor], Tensor] | None = None,
    timing: Timing | None = None,
    pictures: bool = False,
    watch: Watch = lambda _: None,
) -> Report:
    """Judge scorers within prompts and at equal compute, on prompts that no probe was trained on.

    report = evaluate("data", ["my-probe"])                      # a dataset of `collect`
    report = evaluate({"plain": "flux.npz", "mine": "other.npz"})    # anybody's scores of any model
    best = max((row for row in report.compute if row.kind == "cut"), key=lambda row: row.lead)

    source: a dataset or its folder; a score table, its file, or files by the name that each scorer is to have. scorers:
    for a dataset, "embedded", folders of probes, or probes by name; what the dataset holds besides is judged too.
    evaluator: NAME or NAME=FOLDER of the dataset, default: what the first probe predicts, or its first. rewards: the
    table of the finished pictures, where those of `source` have none. network: for FID and KID of what is kept, see
    `network_of`. timing: for costs in seconds, see `read_timing`. pictures: draw sheets of the dataset's pictures too.
    watch: is told what is being done.

    Raises UsageError as `open_source` does, and for a network that cannot be.
    """
    opened = open_source(source, scorers, evaluator, rewards)
    if isinstance(opened, ScoreTable):
        if network is not None:
            raise UsageError("network: needs a dataset; a score table has no pictures")
        return report_of(opened, timing=timing)
    features = None if network is None else network_of(network, opened.dataset)  # a wrong name fails before the work
    table, others, leaks = all_scores(opened, watch)
    watch("figures")
    report = report_of(table, others, timing, leaks)
    report = replace(report, faults=[*opened.faults, *report.faults], notes=opened.notes)
    if features is not None:
        watch("FID and KID")
        name = network if isinstance(network, str) else getattr(network, "__name__", type(network).__name__)
        report = replace(report, distances=distance_rows(table, features(opened.groups), name))
    if pictures:
        watch("pictures")
        report = replace(report, sheets=list(sheets(opened.dataset, opened.groups, table)))
    return report
