"""Tables that blind a probe: the prompt alone, or other candidates' maps."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probeselect.data.table import Table


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
    return replace(table, tensors=table.tensors | maps)
