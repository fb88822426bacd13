"""Splits what a module returned into candidates, and joins candidates again.

Knows only rows. A call of n candidates has g * n rows: g = 2 under batched guidance, ordered [part 0 of every
candidate, part 1 of every candidate, ...], which is `view(g, n, ...)`. How many rows a call has is read from its
inputs; an output whose first size is another number is never divided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Indivisible(Exception):
    """A call's rows cannot be shared out among its candidates; one candidate alone always can have them all."""


@dataclass(frozen=True)
class CallRows:
    """How many rows a module call has, and whether they come as a list of one tensor a row (Z-Image)."""

    count: int
    listed: bool

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "CallRows":
        """Read it from the first input that can hold pictures: a tensor of 3 or more dimensions, or a list of tensors.

        Without one it has 0 rows, which no two candidates can share.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim >= 3:
                return cls(len(value), False)
            if is_tensor_list(value):
                return cls(len(value), True)
        return cls(0, False)

    def is_row_list(self, value: Any) -> bool:
        """Whether a value of this call is a list of one tensor a row."""
        return self.listed and is_tensor_list(value) and len(value) == self.count

    def parts(self, n: int) -> int:
        """Rows of each of n candidates. Raises Indivisible where they do not divide."""
        if n > 1 and (self.count % n or not self.count):
            raise Indivisible(f"a call of {self.count} rows does not divide among {n} candidates")
        return self.count // n


def is_tensor_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Tensor) for item in value)


@dataclass(frozen=True)
class Hole:
    """Stands for an output that a replay needs only the shape of: [g, ...] of one candidate."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    nbytes = 0


@dataclass(frozen=True)
class Rows:
    """One candidate's part of a nested output: per leaf [g, ...], a list of g, or the leaf itself if it has no rows."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @property
    def nbytes(self) -> int:
        tensors = [t for leaf in self.leaves for t in (leaf if isinstance(leaf, list) else [leaf])]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def flatten(output: Any, rows: CallRows) -> tuple[list[Any], pytree.TreeSpec]:
    """Leaves of a nested output; a list of one tensor a row is one leaf."""
    return pytree.tree_flatten(output, is_leaf=rows.is_row_list)


def split(
    output: Any, n: int, rows: CallRows | None = None, device: str | torch.device | None = None, hollow: bool = False
) -> list[Rows]:
    """Copy the rows of each of n candidates out of `output`.

    Args:
        rows: of the call; default: n rows, not listed.
        device: where to keep them (default: where they are).
        hollow: keep no values, only shapes.

    Raises Indivisible for a tensor whose first size is not the number of rows, or does not divide, unless n = 1.
    """
    rows = rows or CallRows(n, False)
    rows.parts(n)
    leaves, spec = flatten(output, rows)
    return [Rows(tuple(_take(leaf, i, n, rows, device, hollow) for leaf in leaves), spec) for i in range(n)]


def join(parts: Sequence[Rows], device: str | torch.device | None = None) -> Any:
    """The output that a call of these candidates together gives. Inverse of `split`."""
    columns = zip(*(part.leaves for part in parts), strict=True)
    leaves = [_join(column, device) for column in columns]
    return pytree.tree_unflatten(leaves, parts[0].spec)


def _take(leaf: Any, i: int, n: int, rows: CallRows, device: str | torch.device | None, hollow: bool) -> Any:
    def keep(tensor: Tensor) -> Any:
        return Hole(tuple(tensor.shape), tensor.dtype) if hollow else _copy(tensor, device)

    if rows.is_row_list(leaf):
        return [keep(row) for row in leaf[i::n]]  # g of them
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        return leaf
    if len(leaf) != rows.count:
        if n > 1:
            raise Indivisible(f"an output of shape {tuple(leaf.shape)} in a call of {rows.count} rows")
        return keep(leaf)
    return keep(leaf.detach().unflatten(0, (-1, n))[:, i])  # [g, ...]


def _copy(tensor: Tensor, device: str | torch.device | None) -> Tensor:
    return tensor.detach().to(device or tensor.device, copy=True)


def _join(column: Sequence[Any], device: str | torch.device | None) -> Any:
    first = column[0]
    if isinstance(first, list):  # row lists: [part 0 of all, part 1 of all, ...]
        return [_filled(row, device) for part in zip(*column, strict=True) for row in part]
    if isinstance(first, Hole):
        return _filled(Hole((first.shape[0] * len(column), *first.shape[1:]), first.dtype), device)
    if isinstance(first, Tensor) and first.ndim:
        stacked = first if len(column) == 1 else torch.stack(list(column), 1).flatten(0, 1)  # [g * n, ...]
        return stacked.to(device or first.device)
    return first


def _filled(row: Any, device: str | torch.device | None) -> Tensor:
    """A row's tensor; for a hole zeros that take no memory."""
    if isinstance(row, Hole):
        return torch.zeros((), dtype=row.dtype, device=device).expand(row.shape)
    return row.to(device or row.device)
