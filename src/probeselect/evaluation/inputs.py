"""Score tables of a dataset: what its scorers and probes say of every candidate, and what blind ones know."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probeselect.core.errors import UsageError
from probeselect.core.metrics import within_prompt_spearman
from probeselect.core.rungs import rung_of, step_at
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.table import Table
from probeselect.evaluation.rows import LeakRow
from probeselect.probe.blind import shuffled_activations, without_activations
from probeselect.probe.checks import text_only_probe, verdict
from probeselect.probe.files import Probe
from probeselect.probe.options import TrainOptions
from probeselect.probe.scorer import ProbeScorer
from probeselect.scorers.context import context_of
from probeselect.scorers.table import can_read, scorers_for

Watch = Callable[[str], None]  # told what is being scored, for a progress bar


def of_table(
    dataset: Dataset,
    groups: Table,
    evaluator: str,
    probes: Mapping[str, Probe],
    watch: Watch = lambda _: None,
) -> ScoreTable:
    """What every scorer that fits a dataset says of it: those of the table of scorers, and these probes.

    groups: of the dataset. Raises UsageError for a probe that does not fit.
    """
    total = dataset.config.steps
    if total is None:
        raise UsageError(f"{dataset.folder}: does not say how many steps its pictures took, so costs cannot be told")
    context = replace(context_of(dataset), probes=probes)
    scorers = []
    for scorer in scorers_for(evaluator, context):
        scores = {}
        for rung in dataset.rungs:
            if can_read(scorer, groups, rung):
                watch(f"{scorer.name} at {rung:.0%}")
                scores[step_at(rung, total)] = scores_of(scorer, groups, rung).double().numpy()
        if scores:
            scorers.append(ScorerScores(scorer.name, scores))
    rewards, valid = groups.tensors[f"reward/{evaluator}"].double().numpy(), groups.valid(evaluator).numpy()
    for each in scorers:  # a candidate that one of them has no score for counts in none
        valid = np.logical_and.reduce([valid, *(np.isfinite(scores) for scores in each.scores.values())])
    return ScoreTable(evaluator, rewards, valid, total, scorers, groups.prompts)


def text_only(table: ScoreTable, groups: Table, like: Probe) -> ScoreTable:
    """The same with a scorer that knows the prompt and a candidate's place in its group, and nothing else.

    It is trained on one half of the prompts and asked about the other, both ways, so no prompt of it was trained on.
    Raises UsageError where there are fewer than two prompts.
    """
    halves = torch.arange(len(groups))[::2], torch.arange(len(groups))[1::2]
    if not len(halves[1]):
        raise UsageError("one prompt alone: a scorer of prompts cannot be trained and tested")
    scores = np.zeros(table.rewards.shape)
    rung = like.config.rungs[-1]
    for mine, others in (halves, halves[::-1]):
        blind = text_only_probe(like, groups.take(mine), groups.take(others), TrainOptions())
        asked = without_activations(groups.take(others))
        scores[others.numpy()] = scores_of(ProbeScorer(blind, table.evaluator), asked, rung).numpy()
    steps = {step for scorer in table.scorers for step in scorer.scores}
    return replace(table, scorers=[*table.scorers, ScorerScores("text only", dict.fromkeys(sorted(steps), scores))])


def leaks_of(table: ScoreTable, groups: Table, probes: Mapping[str, Probe]) -> list[LeakRow]:
    """What scorers that cannot see a candidate know of it: probes that are told about the next candidate of the prompt,
    and the text-only scorer where `table` has it. Any skill within a prompt is a leak, see `probe.checks.verdict`."""
    found, n = [], table.rewards.shape[1]

    def line(name: str, check: str, rung: float, scores: Any) -> None:
        per_prompt = within_prompt_spearman(scores, table.rewards, table.valid).per_prompt
        kind = "shuffled" if check.startswith("told") else "text only"
        found.append(LeakRow(name, check, rung, **vars(verdict(per_prompt, n, kind))))

    for name, probe in probes.items():
        for rung in probe.config.rungs:
            if f"map/{probe.config.taps[0]}/{rung:g}" in groups.tensors:
                blind = ProbeScorer(probe, table.evaluator)
                scores = scores_of(blind, shuffled_activations(groups), rung).numpy()
                line(name, "told about another candidate", rung, np.where(table.valid, scores, 0))
    for scorer in table.scorers:
        if scorer.name == "text only":
            step = max(scorer.scores)
            rung = rung_of(step, table.total_steps)
            line(scorer.name, "told the prompt and the place alone", rung, scorer.scores[step])
    return found
