"""Scorers of the same candidates, from score tables or from a dataset with probes: what `evaluate` takes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probeselect.core.errors import UsageError
from probeselect.core.judged import Judged, Scorer
from probeselect.core.rungs import completed_steps
from probeselect.data.dataset import Dataset
from probeselect.data.score_table import read_score_table
from probeselect.data.table import Table, open_table
from probeselect.evaluators.base import Evaluator
from probeselect.probe.network import Probe
from probeselect.probe.predicting import formula_of, predict_table
from probeselect.probe.seen import digest_of


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


def prompts_not_seen(dataset: Dataset, seen: Mapping[str, frozenset[str] | None]) -> tuple[list[str], list[str]]:
    """The dataset's prompts that no probe was trained on, and what is to be said of the others.

    seen: of each probe by name, the digests of the prompts that it was trained on; None where it does not say.
    Raises UsageError when a probe was trained on all of them.
    """
    prompts = [text for index in dataset.done() for text in dataset.prompts(index)]
    known = frozenset().union(*(digests for digests in seen.values() if digests))
    unseen = [prompt for prompt in prompts if digest_of(prompt) not in known]
    if not unseen:
        raise UsageError(f"{dataset.folder}: every prompt of it was trained on; judge by prompts that were not")
    notes = [f"{name}: does not say what it was trained on" for name, digests in seen.items() if digests is None]
    if len(unseen) < len(prompts):
        count = len(prompts) - len(unseen)
        notes.append(f"{count} of {len(prompts)} prompts were trained on: they are left out of every figure")
    return unseen, notes


def of_dataset(
    dataset: Dataset,
    evaluator: str,
    probes: Mapping[str, Probe],
    formulas: Mapping[str, Evaluator],
    prompts: Sequence[str] | None = None,
) -> Judged:
    """What a dataset holds: the previews that were judged, a fair draw, and what each probe says with its fusion.

    formulas: evaluators whose formula scores predicted features. prompts: those to look at; None for all.
    Raises UsageError for a probe that does not fit, and where no prompt is left.
    """
    table = open_table(dataset, [evaluator])
    if prompts is not None:
        wanted = set(prompts)
        rows = [i for i, prompt in enumerate(table.prompts) if prompt in wanted]
        if not rows:
            raise UsageError(f"{dataset.folder}: holds none of the prompts to be judged")
        table = table.take(torch.tensor(rows))
    total = dataset.config["arguments"].get("num_inference_steps")
    if total is None:
        raise UsageError(f"{dataset.folder}: does not say how many steps its pictures took, so costs cannot be told")
    scorers = list(_scorers(dataset, table, evaluator, probes, formulas, total))
    rewards, valid = table.tensors[f"reward/{evaluator}"].double().numpy(), table.valid(evaluator).numpy()
    for scorer in scorers:  # a candidate that one of them has no score for counts in none
        valid = np.logical_and.reduce([valid, *(np.isfinite(scores) for scores in scorer.scores.values())])
    return Judged(evaluator, rewards, valid, total, scorers)


def _scorers(
    dataset: Dataset,
    table: Table,
    evaluator: str,
    probes: Mapping[str, Probe],
    formulas: Mapping[str, Evaluator],
    total: int,
) -> Iterator[Scorer]:
    steps = {rung: completed_steps(rung, total) - 1 for rung in dataset.rungs}
    previews = {}
    for rung, step in steps.items():
        if (found := table.tensors.get(f"preview/{evaluator}/{rung:g}")) is not None and found.isfinite().any():
            previews[step] = found.double().numpy()
    if previews:
        yield Scorer(f"preview:{evaluator}", previews)
    for name, probe in probes.items():
        probe.check_fits(dataset.config)
        head = next((head for head in probe.config.heads if head.evaluator == evaluator), None)
        if head is None:
            known = ", ".join(head.evaluator for head in probe.config.heads)
            raise UsageError(f"probe {name}: predicts {known}, not {evaluator}")
        said: dict[int, Any] = {}
        fused: dict[int, Any] = {}
        for rung, step in steps.items():
            if rung not in probe.config.rungs:
                continue
            scores = predict_table(probe, table, rung, evaluator, formula_of(head, formulas))
            said[step] = scores.double().numpy()
            if step in previews and any(f.evaluator == evaluator and f.rung == rung for f in probe.config.fusions):
                preview = table.tensors[f"preview/{evaluator}/{rung:g}"]
                fused[step] = probe.fusion(evaluator, rung)(scores, preview).double().numpy()
        if not said:
            raise UsageError(f"probe {name}: none of its rungs {probe.config.rungs} was collected")
        yield Scorer(name, said)
        if fused:
            yield Scorer(f"fusion:{name}", fused)
    draw = np.random.default_rng(0).random(table.tensors["valid"].shape)
    yield Scorer("random", dict.fromkeys(steps.values(), draw))
