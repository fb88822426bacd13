"""What a pipeline's loop modules gave and were given, call by call: recorded for a batch, replayed for any of it.

Knows calls, in order, and how a replay is checked: every replayed call must meet the inputs that the record met, and
the latents after it must be those that stood there then. Nothing waits for the device until `collect` and `check`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.backbones.loop_modules import is_helper
from probeselect.rollout.digests import CallDigest, Digest, Digester
from probeselect.rollout.rows import CallRows, Indivisible, Rows, flatten, join, split

# What a denoiser is given by control nets; their own inputs are checked instead.
_FROM_HELPERS = re.compile(r".*(residual|controlnet).*")


class DoesNotFit(Exception):
    """A replay met other inputs than the record did, so what was recorded is not what this run would compute."""


@dataclass(frozen=True)
class Call:
    """One recorded call, of one candidate."""

    module: str
    output: Rows
    digest: Digest


@dataclass
class Prefix:
    """What is recorded of one candidate up to a rung, on the CPU: its modules' outputs, call by call.

    Memory: denoiser calls x guidance parts x latent size x bytes of the dtype; for SD3.5 at 1024 px in bf16,
    1 MiB a step. Without calls the candidate is run from the start.
    """

    calls: list[Call] = field(default_factory=list)
    latents: Digest | None = None  # after the last recorded step
    completed_steps: int = 0

    @property
    def nbytes(self) -> int:
        return sum(call.output.nbytes for call in self.calls)

    @property
    def recorded_steps(self) -> int:
        return self.completed_steps if self.calls else 0


class Tape:
    """Records the calls of one batch of n candidates."""

    def __init__(self, n: int, digester: Digester) -> None:
        self.n, self._digest = n, digester
        self._calls: list[tuple[str, Any, CallRows, CallDigest]] = []
        self._latents: CallDigest | None = None

    def add(self, module: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """Raises Indivisible for an output that cannot be shared out among the candidates."""
        rows = CallRows.of(args, kwargs)
        _check_divisible(output, self.n, rows)
        kept = _shapes(output) if is_helper(module) else pytree.tree_map_only(Tensor, _copied, output)
        self._calls.append((module, kept, rows, self._digest(args, kwargs, rows, _FROM_HELPERS.fullmatch)))

    def step(self, latents: Any) -> None:
        """A step has ended with these latents."""
        self._digest.step_over()
        self._latents = digest_of_latents(self._digest, latents, self.n)

    def collect(self) -> tuple[list[list[Call]], list[Digest | None]]:
        """The calls of every candidate and the digest of its latents, on the CPU."""
        calls: list[list[Call]] = [[] for _ in range(self.n)]
        for module, kept, rows, digest in self._calls:
            parts = split(pytree.tree_map_only(Tensor, _on_cpu, kept), self.n, rows, hollow=is_helper(module))
            collected = digest.collected()
            for i, part in enumerate(parts):
                calls[i].append(Call(module, part, collected.of(i, self.n)))
        if self._latents is None:
            return calls, [None] * self.n
        latents = self._latents.collected()
        return calls, [latents.of(i, self.n) for i in range(self.n)]


class Player:
    """Replays the prefixes of the candidates of a batch, which may have been recorded in different ones."""

    def __init__(self, prefixes: Sequence[Prefix], digester: Digester) -> None:
        counts = {len(prefix.calls) for prefix in prefixes}
        if len(counts) != 1:
            raise DoesNotFit("candidates took different numbers of calls to the same step")
        self.n, self._digest = len(prefixes), digester
        self._columns = list(zip(*(prefix.calls for prefix in prefixes), strict=True))
        self._latents = [prefix.latents for prefix in prefixes]
        self.steps = prefixes[0].recorded_steps
        self._position = 0
        self._met: list[tuple[CallDigest, Sequence[Digest | None]]] = []

    @property
    def playing(self) -> bool:
        return self._position < len(self._columns)

    def play(self, module: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The recorded output of the next call, on the device of its inputs."""
        column = self._columns[self._position]
        if any(call.module != module for call in column):
            raise DoesNotFit(f"{module} was called where {column[0].module} was")
        self._position += 1
        rows = CallRows.of(args, kwargs)
        self._met.append((self._digest(args, kwargs, rows, _FROM_HELPERS.fullmatch), [call.digest for call in column]))
        return join([call.output for call in column], device=_device_of((args, kwargs)))

    def step(self, latents: Any, steps: int) -> None:
        """A replayed step, the `steps`-th, has ended with these latents."""
        self._digest.step_over()
        if steps == self.steps and (digest := digest_of_latents(self._digest, latents, self.n)) is not None:
            self._met.append((digest, self._latents))

    def check(self) -> None:
        """Raises DoesNotFit unless every replayed call met what its record met. Waits for the device, once."""
        for digest, recorded in self._met:
            collected = digest.collected()
            for i, expected in enumerate(recorded):
                if expected is not None and not collected.of(i, self.n).matches(expected):
                    raise DoesNotFit("the module is given other inputs than when it was recorded")
        self._met = []


def digest_of_latents(digester: Digester, latents: Any, n: int) -> CallDigest | None:
    """Of the latents after a step; None where they are not one row, or several, a candidate."""
    if not isinstance(latents, Tensor) or not latents.ndim or len(latents) % n:
        return None
    return digester((latents,), {}, CallRows(n, False))


def _check_divisible(output: Any, n: int, rows: CallRows) -> None:
    rows.parts(n)
    for leaf in flatten(output, rows)[0] if n > 1 else ():
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) != rows.count:
            raise Indivisible(f"an output of shape {tuple(leaf.shape)} in a call of {rows.count} rows")


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "meta" else tensor.cpu()


def _shapes(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), output)


def _device_of(nested: Any) -> torch.device:
    return next(leaf.device for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor))
