"""Splits what a module returned into candidates, and joins candidates again.

Knows only the batch dimension. A denoiser call of n candidates has g * n rows: g = 2 under batched guidance, ordered
[part 0 of every candidate, part 1 of every candidate, ...], which is `view(g, n, ...)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.core.errors import ProbeSelectError


@dataclass(frozen=True)
class Rows:
    """One candidate's part of a nested output: per leaf [g, ...], or the leaf itself where it has no rows."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves if isinstance(leaf, Tensor))


def split(output: Any, n: int, device: str | torch.device | None = None) -> list[Rows]:
    """Copy the rows of each of n candidates out of `output`, to `device` (default: where they are).

    A list stands for one tensor a row (Z-Image), a tuple or dataclass for several outputs.
    Raises ProbeSelectError when a tensor's rows do not divide among the candidates.
    """
    leaves, spec = pytree.tree_flatten(_stack_row_lists(output))
    return [Rows(tuple(_take(leaf, i, n, device) for leaf in leaves), spec) for i in range(n)]


def join(parts: Sequence[Rows], device: str | torch.device | None = None) -> Any:
    """The output that a call of these candidates together gives. Inverse of `split`."""
    leaves = []
    for column in zip(*(part.leaves for part in parts), strict=True):
        if isinstance(column[0], Tensor):
            leaves.append(torch.stack(column, 1).flatten(0, 1).to(device or column[0].device))  # [g * n, ...]
        else:
            leaves.append(column[0])
    return _unstack_row_lists(pytree.tree_unflatten(leaves, parts[0].spec))


def _take(leaf: Any, i: int, n: int, device: str | torch.device | None) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        return leaf
    if leaf.shape[0] % n:
        raise ProbeSelectError(f"a denoiser output of shape {tuple(leaf.shape)} does not divide among {n} candidates")
    rows = leaf.detach().unflatten(0, (-1, n))[:, i]  # [g, ...]
    return rows.to(device, copy=True)


@dataclass(frozen=True)
class _RowList:
    stacked: Tensor


pytree.register_pytree_node(
    _RowList, lambda rows: ([rows.stacked], None), lambda children, _: _RowList(next(iter(children)))
)


def _stack_row_lists(output: Any) -> Any:
    if isinstance(output, list) and output and all(isinstance(item, Tensor) for item in output):
        return _RowList(torch.stack(output))
    if type(output) is tuple:
        return tuple(_stack_row_lists(item) for item in output)
    return output


def _unstack_row_lists(output: Any) -> Any:
    if isinstance(output, _RowList):
        return list(output.stacked.unbind(0))
    if type(output) is tuple:
        return tuple(_unstack_row_lists(item) for item in output)
    return output
