"""Digests of what a module is given, by candidate: whether a replay meets the inputs that the record met.

A digest holds a few random projections of every tensor, so it costs little more than one reading of the inputs, and two
digests are compared with a tolerance: the same candidate in another batch differs by rounding, another candidate by
everything. Nothing here waits for the device: projections stay where they are until they are collected.

Projection: <r, x> with r = a (x) v, a and v of random signs, so that E <r, d>^2 = |d|^2 for any difference d
(a tensor sketch; Ahle et al., SODA 2020). With K = 8 of them a relative difference ten times the tolerance passes by
chance once in 10^8.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.sampling.rows import CallRows, is_tensor_list

K = 8  # projections of a tensor
WIDTH = 512  # elements that share one sign of `a`
# What a tensor may differ by from batch to batch, relative to its norm: rounding, and no more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True, eq=False)
class Listed:
    """A list without tensors: as a whole, and by row where it has an entry a row (or the same for all)."""

    whole: str
    items: tuple[str, ...]

    def of(self, i: int, n: int, rows: int) -> "Listed":
        if len(set(self.items)) == 1:
            return Listed(self.whole, self.items[:1])
        return Listed(self.whole, self.items[i::n] if len(self.items) == rows else ())

    def __eq__(self, other: object) -> bool:
        """Which of the two a list is cannot be told from one call: it is the same if either is."""
        if not isinstance(other, Listed):
            return False
        return self.whole == other.whole or (bool(self.items) and self.items == other.items)


@dataclass(frozen=True)
class Digest:
    """Of one candidate in one call. Equal `structure` is necessary; `values` [tensors, g or 1, K + 1] are compared."""

    structure: tuple[Any, ...]
    values: tuple[Tensor, ...]
    tolerances: tuple[float, ...]

    def matches(self, other: "Digest") -> bool:
        """Whether both are of the same inputs, but for rounding. Both must be on the CPU."""
        if self.structure != other.structure:
            return False
        pairs = zip(self.values, other.values, self.tolerances, strict=True)
        return all(_alike(a, b, tolerance) for a, b, tolerance in pairs)


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """[g, K + 1] each: K projections and the norm. Values that are not finite are alike on both sides."""
    a, b = a.double(), b.double()
    distance = ((a - b)[..., :K] ** 2).mean(-1).sqrt()  # about |x - y|
    norm = torch.maximum(a[..., K], b[..., K])
    lost = ~(a.isfinite().all(-1) | b.isfinite().all(-1))  # on both sides: a candidate that has broken down
    return bool(((distance <= tolerance * norm + 1e-12) | lost).all())


class Digester:
    """Makes the digests of the calls of one run; tensors that come again unchanged are read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bool], tuple[Tensor, int, Tensor]] = {}  # -> kept alive, version, sketch
        self._met: set[tuple[int, bool]] = set()  # in this step

    def __call__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], rows: CallRows, skip: Any = None
    ) -> "CallDigest":
        """skip: a function of a keyword's name that says which keywords to leave out."""
        given = {name: value for name, value in kwargs.items() if not (skip and skip(name))}
        leaves, _ = pytree.tree_flatten(
            (tuple(args), given), is_leaf=lambda v: rows.is_row_list(v) or _is_plain_sequence(v)
        )
        return CallDigest(rows, tuple(self._leaf(leaf, rows) for leaf in leaves))

    def _leaf(self, leaf: Any, rows: CallRows) -> "Leaf":
        if rows.is_row_list(leaf):
            parts = [self._sketch(row[None]) for row in leaf]
            return Leaf("list", tuple(str((tuple(r.shape), r.dtype)) for r in leaf), torch.cat(parts), leaf[0].dtype)
        if isinstance(leaf, Tensor):
            if leaf.ndim > 1 and leaf.shape[1] == rows.count != len(leaf):
                leaf = leaf.transpose(0, 1)  # such as [layers, rows, ...] (HiDream)
            by_row = leaf.ndim > 0 and len(leaf) == rows.count
            shape = leaf.shape[1:] if by_row or (leaf.ndim and len(leaf) == 1) else leaf.shape
            about = str((tuple(shape), leaf.dtype))
            return Leaf("rows" if by_row else "whole", about, self._remembered(leaf, by_row), leaf.dtype)
        if _is_plain_sequence(leaf):
            return Leaf("plain", Listed(repr(leaf), tuple(repr(item) for item in leaf)))
        if leaf is None or isinstance(leaf, bool | int | float | str):
            return Leaf("plain", repr(leaf))
        return Leaf("plain", type(leaf).__name__)

    def _remembered(self, leaf: Tensor, by_row: bool) -> Tensor:
        key = (id(leaf), by_row)
        self._met.add(key)
        known = self._known.get(key)
        if known is not None and known[1] == leaf._version:
            return known[2]
        sketch = self._sketch(leaf if by_row else leaf[None])
        self._known[key] = (leaf, leaf._version, sketch)
        return sketch

    def step_over(self) -> None:
        """Let go of the tensors that the step did not meet, so that no step's latents are held for long."""
        self._known = {key: known for key, known in self._known.items() if key in self._met}
        self._met = set()

    @staticmethod
    def _sketch(x: Tensor) -> Tensor:
        """[R, ...] -> [R, K + 1]"""
        x = torch.view_as_real(x) if x.is_complex() else x
        flat = x.detach().reshape(len(x), -1).float()  # [R, M]
        m = flat.shape[1]
        if m <= K:
            small = torch.nn.functional.pad(flat * math.sqrt(K), (0, K - m))
            return torch.cat([small, torch.linalg.vector_norm(flat, dim=1, keepdim=True)], 1)
        blocks = m // WIDTH
        signs, mix = _signs(max(blocks, 1), flat.device), _mix(flat.device)
        body = (
            torch.matmul(signs[:blocks], flat[:, : blocks * WIDTH].view(len(flat), blocks, WIDTH)) if blocks else None
        )
        projected = body @ mix if body is not None else flat.new_zeros(len(flat), K)
        if tail := m - blocks * WIDTH:
            projected = projected + flat[:, blocks * WIDTH :] @ mix[:tail]
        return torch.cat([projected, torch.linalg.vector_norm(flat, dim=1, keepdim=True)], 1)


@lru_cache(maxsize=64)
def _signs(blocks: int, device: torch.device) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(blocks)
    return (torch.randint(0, 2, (blocks,), generator=generator) * 2.0 - 1).to(device)


@lru_cache(maxsize=8)
def _mix(device: torch.device) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return (torch.randint(0, 2, (WIDTH, K), generator=generator) * 2.0 - 1).to(device)


@dataclass(frozen=True)
class Leaf:
    """One input of a call: how it belongs to rows, what it looks like, and its sketch [R or 1, K + 1]."""

    kind: str  # "rows", "list": one entry a row; "whole": a tensor all share; "plain": no tensor
    about: Any
    sketch: Tensor | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class CallDigest:
    """Of all candidates of a call, on its device."""

    rows: CallRows
    leaves: tuple[Leaf, ...]

    def collected(self) -> "CallDigest":
        """On the CPU: this waits for the device."""
        leaves = [
            Leaf(leaf.kind, leaf.about, None if leaf.sketch is None else leaf.sketch.cpu(), leaf.dtype)
            for leaf in self.leaves
        ]
        return CallDigest(self.rows, tuple(leaves))

    def of(self, i: int, n: int) -> Digest:
        """The digest of candidate i of n."""
        structure: list[Any] = [self.rows.parts(n)]
        values, tolerances = [], []
        for leaf in self.leaves:
            if leaf.kind == "list":
                structure.append(("list", leaf.about[i::n]))
            elif isinstance(leaf.about, Listed):
                structure.append(leaf.about.of(i, n, self.rows.count))
            else:
                structure.append(("tensor" if leaf.sketch is not None else "plain", leaf.about))
            if leaf.sketch is not None:
                values.append(leaf.sketch if leaf.kind == "whole" else leaf.sketch[i::n])
                tolerances.append(TOLERANCE.get(leaf.dtype or torch.float32, 0.0))
        return Digest(tuple(structure), tuple(values), tuple(tolerances))


def _is_plain_sequence(value: Any) -> bool:
    """A list or tuple without tensors, such as the sizes of every row."""
    if not isinstance(value, list | tuple) or not value or is_tensor_list(value):
        return False
    return not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
