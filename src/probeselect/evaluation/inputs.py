"""Scorers of the same candidates, from score tables or from a dataset with probes: what `evaluate` takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probeselect.core.errors import UsageError
from probeselect.core.judged import Judged, Scorer
from probeselect.core.metrics import within_prompt_spearman
from probeselect.core.rungs import completed_steps
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.score_table import read_score_table
from probeselect.data.table import Table
from probeselect.probe.blind import shuffled_activations, without_activations
from probeselect.probe.checks import text_only_probe, verdict
from probeselect.probe.config import Trained
from probeselect.probe.files import Probe
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.splits import digest_of, digest_of_all, part_of
from probeselect.probe.training import TrainingSettings
from probeselect.scorers.context import context_of
from probeselect.scorers.table import can_read, scorers_for

Watch = Callable[[str], None]  # told what is being scored, for a progress bar


def of_score_tables(paths: Mapping[str, Path], rewards_from: Path | None = None) -> Judged:
    """Tables by the name that each is to have; all of one set of prompts and candidates.

    The first one holds the rewards of the finished pictures, or `rewards_from` does; the others may hold them too, and
    then they must be the same. Candidates that one of them lacks count in none.
    """
    (first, path), *others = paths.items()
    base = read_score_table(path, rewards_from)
    tables = {first: base} | {name: read_score_table(other, rewards_from or path) for name, other in others}
    valid = np.logical_and.reduce([table.valid for table in tables.values()])
    scorers = [Scorer(name, {step: table.after(step) for step in table.steps}) for name, table in tables.items()]
    return Judged((rewards_from or path).stem, base.rewards, valid, base.total_steps, scorers)


def prompts_not_seen(
    dataset: Dataset, seen: Mapping[str, frozenset[str] | None], trained: Mapping[str, Trained]
) -> tuple[list[str], list[str], list[str]]:
    """The dataset's prompts that no probe was trained on; faults and notes to be told about the others.

    seen: of each probe by name, the digests of the prompts that it was trained on; None where it does not say.
    trained: what its configuration says of its training. Prompts of the part of this very dataset that it was meant
    to be trained on are a note; any others are a fault: somebody took them for new.
    Raises UsageError when probes were trained on all of them.
    """
    prompts = [text for index in dataset.done() for text in dataset.prompts(index)]
    known = frozenset().union(*(digests for digests in seen.values() if digests))
    unseen = [prompt for prompt in prompts if digest_of(prompt) not in known]
    if not unseen:
        raise UsageError(f"{dataset.folder}: every prompt of it was trained on; judge by prompts that were not")
    faults: list[str] = []
    notes: list[str] = []
    for name, digests in seen.items():
        if digests is None:
            notes.append(f"{name}: does not say what it was trained on")
        elif mine := [prompt for prompt in prompts if digest_of(prompt) in digests]:
            line = f"{name} was trained on {len(mine)} of {len(prompts)} prompts: they are left out of every figure"
            (notes if _is_its_own(prompts, trained[name]) else faults).append(line)
    return unseen, faults, notes


def _is_its_own(prompts: Sequence[str], trained: Trained) -> bool:
    """Whether a probe was trained on the training part of just these prompts."""
    if (split := trained.split) is None:
        return False
    part = [prompt for prompt in prompts if part_of(prompt, split.val_share, split.test_share) == "train"]
    return trained.train_prompts == digest_of_all(part)


def table_of(dataset: Dataset, evaluator: str, prompts: Sequence[str] | None = None) -> Table:
    """The groups that an evaluator has scored, of `prompts` (None: all). Raises UsageError where none is left."""
    table = dataset.table([evaluator])
    if prompts is not None:
        wanted = set(prompts)
        rows = [i for i, prompt in enumerate(table.prompts) if prompt in wanted]
        if not rows:
            raise UsageError(f"{dataset.folder}: holds none of the prompts to be judged")
        table = table.take(torch.tensor(rows))
    return table


def of_table(
    dataset: Dataset,
    table: Table,
    evaluator: str,
    probes: Mapping[str, Probe],
    watch: Watch = lambda _: None,
) -> Judged:
    """What every scorer that fits a dataset says of it: those of the table of scorers, and these probes.

    table: groups of the dataset. Raises UsageError for a probe that does not fit.
    """
    total = dataset.config.steps
    if total is None:
        raise UsageError(f"{dataset.folder}: does not say how many steps its pictures took, so costs cannot be told")
    context = replace(context_of(dataset), probes=probes)
    scorers = []
    for scorer in scorers_for(evaluator, context):
        scores = {}
        for rung in dataset.rungs:
            if can_read(scorer, table, rung):
                watch(f"{scorer.name} at {rung:.0%}")
                scores[completed_steps(rung, total) - 1] = scores_of(scorer, table, rung).double().numpy()
        if scores:
            scorers.append(Scorer(scorer.name, scores))
    rewards, valid = table.tensors[f"reward/{evaluator}"].double().numpy(), table.valid(evaluator).numpy()
    for each in scorers:  # a candidate that one of them has no score for counts in none
        valid = np.logical_and.reduce([valid, *(np.isfinite(scores) for scores in each.scores.values())])
    return Judged(evaluator, rewards, valid, total, scorers, table.prompts)


def rungs_not_trained(dataset: Dataset, probes: Mapping[str, Probe]) -> list[str]:
    """A note for every probe that is asked at rungs that it was not trained at."""
    notes = []
    for name, probe in probes.items():
        if others := [rung for rung in dataset.rungs if rung not in probe.config.rungs]:
            trained, asked = (", ".join(f"{rung:g}" for rung in each) for each in (probe.config.rungs, others))
            notes.append(f"{name} was trained at {trained}; its figures at {asked} are what it makes of other rungs")
    return notes


def text_only(judged: Judged, table: Table, like: Probe) -> Judged:
    """The same with a scorer that knows the prompt and a candidate's place in its group, and nothing else.

    It is trained on one half of the prompts and asked about the other, both ways, so no prompt of it was trained on.
    Raises UsageError where there are fewer than two prompts.
    """
    halves = torch.arange(len(table))[::2], torch.arange(len(table))[1::2]
    if not len(halves[1]):
        raise UsageError("one prompt alone: a scorer of prompts cannot be trained and tested")
    scores = np.zeros(judged.rewards.shape)
    rung = like.config.rungs[-1]
    for mine, others in (halves, halves[::-1]):
        blind = text_only_probe(like, table.take(mine), table.take(others), TrainingSettings())
        asked = without_activations(table.take(others))
        scores[others.numpy()] = scores_of(ProbeScorer(blind, judged.evaluator), asked, rung).numpy()
    steps = {step for scorer in judged.scorers for step in scorer.scores}
    return replace(judged, scorers=[*judged.scorers, Scorer("text only", dict.fromkeys(sorted(steps), scores))])


def leaks_of(judged: Judged, table: Table, probes: Mapping[str, Probe]) -> list[dict[str, Any]]:
    """What scorers that cannot see a candidate know of it: probes that are told about the next candidate of the prompt,
    and the text-only scorer where `judged` has it. Any skill within a prompt is a leak, see `probe.checks.verdict`."""
    found, n = [], judged.rewards.shape[1]

    def line(name: str, check: str, rung: float, scores: Any) -> None:
        per_prompt = within_prompt_spearman(scores, judged.rewards, judged.valid).per_prompt
        kind = "shuffled" if check.startswith("told") else "text only"
        found.append({"probe": name, "check": check, "rung": rung, **verdict(per_prompt, n, kind)})

    for name, probe in probes.items():
        for rung in probe.config.rungs:
            if f"map/{probe.config.taps[0]}/{rung:g}" in table.tensors:
                blind = ProbeScorer(probe, judged.evaluator)
                scores = scores_of(blind, shuffled_activations(table), rung).numpy()
                line(name, "told about another candidate", rung, np.where(judged.valid, scores, 0))
    for scorer in judged.scorers:
        if scorer.name == "text only":
            step = max(scorer.scores)
            rung = (step + 1) / judged.total_steps
            line(scorer.name, "told the prompt and the place alone", rung, scorer.scores[step])
    return found
