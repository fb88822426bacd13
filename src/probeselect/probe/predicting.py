"""What a probe says of the groups of a table, and tables that blind it: the prompt alone, or other candidates' maps."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probeselect.data.table import Table
from probeselect.evaluators.base import Evaluator
from probeselect.probe.config import Head
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.objective import Batch, batch_of


def predict_table(
    probe: ProbeNetwork,
    table: Table,
    rung: float,
    evaluator: str,
    formula: Evaluator | None,
    groups_per_batch: int = 32,
) -> Tensor:
    """Scores [G, N] by the head of `evaluator` at a rung; `formula` scores predicted features (None: scalar head)."""
    device, parts = next(probe.parameters()).device, []
    with torch.no_grad():
        for rows in torch.arange(len(table)).split(groups_per_batch):
            batch = batch_of(table, probe.config, rows, rung, device)
            parts.append(_scores_of(probe, batch, evaluator, formula).cpu())
    return torch.cat(parts)


def _scores_of(probe: ProbeNetwork, batch: Batch, evaluator: str, formula: Evaluator | None) -> Tensor:
    encoded, condition = probe.encode(batch.maps, batch.rung, batch.spread_embeddings)
    predicted = probe.predict(encoded, condition, evaluator)
    scores = predicted if formula is None else formula.score(predicted, batch.prompts)
    return scores.view(batch.groups)


def formula_of(head: Head, evaluators: Mapping[str, Evaluator]) -> Evaluator | None:
    return evaluators[head.evaluator] if head.kind == "features" else None


class _Changed:
    """A tensor [G, ...] of a table with something done to every group as it is read."""

    def __init__(self, values: Any, change: Callable[[Tensor], Tensor]) -> None:
        self.values, self.change = values, change
        self.shape = (values.shape[0], *change(values[torch.tensor([0])]).shape[1:])

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.change(self.values[rows])


def without_activations(table: Table) -> Table:
    """The same groups with nothing in every activation but the candidate's place in its group, 0 to N - 1.

    What is left to read is the prompt, and that place: rewards that depend on it tell of data that were sorted.
    """
    return with_maps(table, lambda _, maps: torch.arange(float(maps.shape[1])).view(-1, 1, 1, 1).expand_as(maps).half())


def shuffled_activations(table: Table) -> Table:
    """The same groups with every candidate given the activations of the next one of its prompt."""
    return with_maps(table, lambda _, maps: maps.roll(1, 1))


def with_maps(table: Table, change: Callable[[str, Tensor], Tensor]) -> Table:
    """The same groups with `change(name, values)` in place of every activation [R, N, C, H, W] that is read."""
    maps = {
        name: _Changed(values, partial(change, name))
        for name, values in table.tensors.items()
        if name.startswith("map/")
    }
    return Table(table.prompts, table.tensors | maps)
