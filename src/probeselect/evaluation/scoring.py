"""Score tables of held-out data: what scorers and probes say of every candidate, and what blind ones know."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probeselect.core.errors import UsageError
from probeselect.core.metrics import within_prompt_spearman
from probeselect.core.rungs import rung_of, step_at
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.data.dataset import scores_of
from probeselect.evaluation.rows import LeakRow
from probeselect.evaluation.sources import HeldOut
from probeselect.probe.blind import shuffled_activations, without_activations
from probeselect.probe.checks import text_only_probe, verdict
from probeselect.probe.options import TrainOptions
from probeselect.probe.scorer import ProbeScorer
from probeselect.scorers.context import context_of
from probeselect.scorers.table import can_read, scorers_for

Watch = Callable[[str], None]  # told what is being scored, for a progress bar


def all_scores(held: HeldOut, watch: Watch) -> tuple[ScoreTable, list[ScoreTable], list[LeakRow]]:
    """The score tables of the main evaluator and of the others, and what scorers that cannot see a candidate know.

    Beside probes the main table has a scorer that is told the prompt alone, see `with_text_only`.
    """
    table = score_table(held, held.evaluator, watch)
    others = [score_table(held, name, watch) for name in held.others]
    if held.probes and len(held.groups) > 1:
        watch("text only")
        table = with_text_only(table, held)
    watch("blind probes")
    return table, others, leaks_of(table, held)


def score_table(held: HeldOut, evaluator: str, watch: Watch = lambda _: None) -> ScoreTable:
    """What scorers say of what an evaluator has scored: those of the table of scorers that fit, and its probes.

    Raises UsageError for a probe that does not fit, or does not predict the main evaluator.
    """
    dataset, groups, total = held.dataset, held.groups, held.dataset.config.steps
    if total is None:
        raise UsageError(f"{dataset.folder}: does not say how many steps its pictures took, so costs cannot be told")
    probes = {
        name: probe
        for name, probe in held.probes.items()
        if evaluator in (held.evaluator, *(head.evaluator for head in probe.config.heads))
    }
    scorers = []
    for scorer in scorers_for(evaluator, replace(context_of(dataset), probes=probes)):
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


def with_text_only(table: ScoreTable, held: HeldOut) -> ScoreTable:
    """The same with a scorer that knows the prompt and a candidate's place in its group, and nothing else.

    It is trained like the first probe on one half of the prompts and asked about the other, both ways, so no prompt of
    it was trained on. Needs two prompts.
    """
    like, groups = next(iter(held.probes.values())), held.groups
    halves = torch.arange(len(groups))[::2], torch.arange(len(groups))[1::2]
    scores = np.zeros(table.rewards.shape)
    rung = like.config.rungs[-1]
    for mine, others in (halves, halves[::-1]):
        blind = text_only_probe(like, groups.take(mine), groups.take(others), TrainOptions())
        asked = without_activations(groups.take(others))
        scores[others.numpy()] = scores_of(ProbeScorer(blind, table.evaluator), asked, rung).numpy()
    steps = {step for scorer in table.scorers for step in scorer.scores}
    return replace(table, scorers=[*table.scorers, ScorerScores("text only", dict.fromkeys(sorted(steps), scores))])


def leaks_of(table: ScoreTable, held: HeldOut) -> list[LeakRow]:
    """What scorers that cannot see a candidate know of it: probes that are told about the next candidate of the prompt,
    and the text-only scorer where `table` has it. Any skill within a prompt is a leak, see `probe.checks.verdict`."""
    found, n = [], table.rewards.shape[1]

    def line(name: str, check: str, rung: float, scores: Any) -> None:
        per_prompt = within_prompt_spearman(scores, table.rewards, table.valid).per_prompt
        kind = "shuffled" if check.startswith("told") else "text only"
        found.append(LeakRow(name, check, rung, **vars(verdict(per_prompt, n, kind))))

    for name, probe in held.probes.items():
        for rung in probe.config.rungs:
            if f"map/{probe.config.taps[0]}/{rung:g}" in held.groups.tensors:
                blind = ProbeScorer(probe, table.evaluator)
                scores = scores_of(blind, shuffled_activations(held.groups), rung).numpy()
                line(name, "told about another candidate", rung, np.where(table.valid, scores, 0))
    for scorer in table.scorers:
        if scorer.name == "text only":
            step = max(scorer.scores)
            rung = rung_of(step, table.total_steps)
            line(scorer.name, "told the prompt and the place alone", rung, scorer.scores[step])
    return found
