"""Groups as named tensors [G, ...]: in memory, or read from a dataset as they are asked for.

map/TAP/RUNG [G, N, C, H, W] fp16, prompt [G, D] fp16, seeds and valid [G, N],
reward/EVALUATOR [G, N] fp32, preview/EVALUATOR/RUNG [G, N] fp32, features/EVALUATOR [G, N, ...] fp16
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.data.dataset import Dataset


class Stored:
    """A tensor [G, ...] that stays on the disk; `stored[rows]` reads those groups and no others."""

    def __init__(self, dataset: Dataset, name: str, groups: Tensor) -> None:
        self.dataset, self.name, self.groups = dataset, name, groups
        self.shape = (len(groups), *self._read(int(groups[0])).shape)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._read(int(group)) for group in self.groups[rows]])

    def _read(self, group: int) -> Tensor:
        return torch.from_numpy(self.dataset.group(group, [self.name])[self.name])

    def of(self, rows: Tensor) -> "Stored":
        """The same tensor of some of the groups."""
        return Stored(self.dataset, self.name, self.groups[rows])


@dataclass(frozen=True)
class Table:
    """Groups with their prompts; `tensors[name][rows]` gives those of the groups `rows`."""

    prompts: list[str]
    tensors: dict[str, Any]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> "Table":
        """Some of the groups, in the order of `rows`; what is on the disk stays there."""
        tensors = {k: v.of(rows) if isinstance(v, Stored) else v[rows] for k, v in self.tensors.items()}
        return Table([self.prompts[i] for i in rows.tolist()], tensors)

    def valid(self, evaluator: str) -> Tensor:
        """Which candidates [G, N] have finite activations and a finite reward."""
        mask: Tensor = self.tensors["valid"] & self.tensors[f"reward/{evaluator}"].isfinite()
        return mask


def open_table(dataset: Dataset, evaluators: Sequence[str]) -> Table:
    """All groups that are there and scored by all `evaluators`; activations and features stay on the disk.

    Groups without one valid candidate are left out. Raises UsageError when nothing is left.
    """
    indices = [i for i in dataset.done() if all(dataset.scores(name, i).is_dir() for name in evaluators)]
    size = dataset.config.groups_per_shard
    groups = torch.tensor([i * size + row for i in indices for row in range(dataset.groups_of(i))], dtype=torch.long)
    if not len(groups):
        by = f" scored by {', '.join(evaluators)}" if evaluators else ""
        raise UsageError(f"{dataset.folder}: holds no shard{by}; collect and score write them")
    parts = [dataset.small_tensors(index, evaluators) for index in indices]
    names = set.intersection(*(set(part) for part in parts))
    tensors: dict[str, Any] = {n: torch.from_numpy(np.concatenate([part[n] for part in parts])) for n in names}
    prompts = [text for index in indices for text in dataset.prompts(index)]
    whole = tensors["valid"].any(1).nonzero()[:, 0]
    table = Table(prompts, tensors).take(whole)
    first = divmod(int(groups[whole[0]]), size)[0]
    large = [name for name in dataset.tensor_names(first) if name.startswith("map/")]
    large += [f"features/{name}" for name in evaluators if dataset.has_features(name, first)]
    return Table(table.prompts, table.tensors | {name: Stored(dataset, name, groups[whole]) for name in large})


def in_memory(table: Table) -> Table:
    """The same groups, all read."""
    everything = torch.arange(len(table))
    return Table(table.prompts, {k: v[everything] if isinstance(v, Stored) else v for k, v in table.tensors.items()})


def whole_groups(table: Table, evaluator: str) -> Table:
    """The groups of which every candidate is valid."""
    return table.take(table.valid(evaluator).all(1).nonzero()[:, 0])
