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

from probeselect.rollout.rows import CallRows, is_tensor_list

K = 8  # projections of a tensor
MOST_ROWS = 1024  # of a tensor that candidates may have rows of
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
class Share:
    """A reading of what a candidate has of a tensor: its rows [L, ...] by their shape, and their sketch [L, K + 1]."""

    form: str
    sketch: Tensor


@dataclass(frozen=True)
class Digest:
    """Of one candidate in one call. Equal `structure` is necessary; then every tensor is compared.

    From one call it cannot be told whether rows belong to candidates or all rows to all, and in which order, for sizes
    may be equal by chance. So a tensor has several readings, and two are the same if one of each is.
    """

    structure: tuple[Any, ...]
    tensors: tuple[tuple[Share, ...], ...]
    tolerances: tuple[float, ...]

    def matches(self, other: "Digest") -> bool:
        """Whether both are of the same inputs, but for rounding. Both must be on the CPU."""
        if self.structure != other.structure or len(self.tensors) != len(other.tensors):
            return False
        return all(
            any(x.form == y.form and _alike(x.sketch, y.sketch, tolerance) for x in mine for y in theirs)
            for mine, theirs, tolerance in zip(self.tensors, other.tensors, self.tolerances, strict=True)
        )


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """[L, K + 1] each: K projections and the norm. Values that are not finite are alike on both sides."""
    if len(a) != len(b):
        return False
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
            parts = [_sketch(row[None]) for row in leaf]
            return Leaf("list", tuple(str((tuple(r.shape), r.dtype)) for r in leaf), torch.cat(parts), leaf[0].dtype)
        if isinstance(leaf, Tensor):
            second = leaf.transpose(0, 1) if leaf.ndim > 2 and leaf.shape[1] == rows.count else None
            return Leaf(
                "tensor", _form(leaf), self._remembered(leaf, leaf), leaf.dtype,
                None if second is None else (_form(second), self._remembered(leaf, second)),
            )  # fmt: skip
        if _is_plain_sequence(leaf):
            return Leaf("plain", Listed(repr(leaf), tuple(repr(item) for item in leaf)))
        if leaf is None or isinstance(leaf, bool | int | float | str):
            return Leaf("plain", repr(leaf))
        return Leaf("plain", type(leaf).__name__)

    def _remembered(self, leaf: Tensor, read: Tensor) -> Tensor:
        """The sketch of a leaf, read with its first or its second dimension as rows."""
        key = (id(leaf), read is leaf)
        self._met.add(key)
        known = self._known.get(key)
        if known is not None and known[1] == leaf._version:
            return known[2]
        sketch = _sketch(read if read.ndim > 0 and len(read) <= MOST_ROWS else read[None])
        self._known[key] = (leaf, leaf._version, sketch)
        return sketch

    def step_over(self) -> None:
        """Let go of the tensors that the step did not meet, so that no step's latents are held for long."""
        self._known = {key: known for key, known in self._known.items() if key in self._met}
        self._met = set()


def _form(leaf: Tensor) -> str:
    """Of a row. A tensor of too many rows is one row."""
    return str((tuple(leaf.shape[1:] if len(leaf.shape) and len(leaf) <= MOST_ROWS else leaf.shape), leaf.dtype))


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
    body = torch.matmul(signs[:blocks], flat[:, : blocks * WIDTH].view(len(flat), blocks, WIDTH)) if blocks else None
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
    """One input of a call: what it looks like, and its sketch [L, K + 1]."""

    kind: str  # "tensor"; "list": of tensors, one a row; "plain": no tensor
    about: Any
    sketch: Tensor | None = None
    dtype: torch.dtype | None = None
    second: tuple[str, Tensor] | None = None  # form and sketch, where its second dimension may be the rows (HiDream)

    def collected(self) -> "Leaf":
        second = self.second and (self.second[0], self.second[1].cpu())
        return Leaf(self.kind, self.about, None if self.sketch is None else self.sketch.cpu(), self.dtype, second)

    def shares(self, i: int, n: int, rows: int) -> tuple[Share, ...]:
        """What candidate i of n may have of a tensor in a call of so many rows."""
        assert self.sketch is not None
        readings = [self.sketch]  # all of it
        count = len(self.sketch)
        if count % n == 0:
            readings.append(self.sketch[i::n])
        if rows and count > rows and count % rows == 0:  # several for a row, such as one a frame (AnimateDiff)
            readings.append(self.sketch.view(rows, count // rows, -1)[i::n].flatten(0, 1))
        shares = [Share(self.about, each) for each in readings]
        if self.second is not None:
            shares.append(Share(f"second {self.second[0]}", self.second[1][i::n]))
        return tuple(shares)


@dataclass(frozen=True)
class CallDigest:
    """Of all candidates of a call, on its device."""

    rows: CallRows
    leaves: tuple[Leaf, ...]

    def collected(self) -> "CallDigest":
        """On the CPU: this waits for the device."""
        return CallDigest(self.rows, tuple(leaf.collected() for leaf in self.leaves))

    def of(self, i: int, n: int) -> Digest:
        """The digest of candidate i of n."""
        structure: list[Any] = [self.rows.parts(n)]
        tensors, tolerances = [], []
        for leaf in self.leaves:
            if leaf.kind == "list":
                structure.append(("list", leaf.about[i::n]))
            elif leaf.kind == "tensor":
                structure.append("tensor")
            elif isinstance(leaf.about, Listed):
                structure.append(leaf.about.of(i, n, self.rows.count))
            else:
                structure.append(leaf.about)
            if leaf.sketch is not None:
                own = (Share("", leaf.sketch[i::n]),) if leaf.kind == "list" else leaf.shares(i, n, self.rows.count)
                tensors.append(own)
                tolerances.append(TOLERANCE.get(leaf.dtype or torch.float32, 0.0))
        return Digest(tuple(structure), tuple(tensors), tuple(tolerances))


def _is_plain_sequence(value: Any) -> bool:
    """A list or tuple without tensors, such as the sizes of every row."""
    if not isinstance(value, list | tuple) or not value or is_tensor_list(value):
        return False
    return not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
