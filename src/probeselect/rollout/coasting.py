"""From the rung to a decoded preview without computing: modules answer as they last did, steps hand on one latent."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.rollout.rows import CallRows


class Coast:
    """The calls of the last step, which answer for those of every later one, module by module."""

    def __init__(self) -> None:
        self._calls: dict[str, deque[tuple[CallRows, Any]]] = {}
        self._stale = False

    def note(self, module: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """A call of the running step."""
        if self._stale:
            self._calls, self._stale = {}, False
        self._calls.setdefault(module, deque()).append((CallRows.of(args, kwargs), output))

    def step_over(self) -> None:
        """The step has ended, and it was not the last before the rung."""
        self._stale = True

    def answer(self, module: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the module gave in the last step, call for call; with the number of rows that this call has."""
        calls = self._calls.get(module) or next(iter(self._calls.values()))
        rows, output = calls[0]
        calls.rotate(-1)
        return _fitted(output, rows, CallRows.of(args, kwargs))


def _fitted(output: Any, had: CallRows, has: CallRows) -> Any:
    """A later step may have guidance where the last one had none, or the other way."""
    if had.count == has.count or not had.count:
        return output
    index = torch.arange(has.count) % had.count

    def leaf(value: Any) -> Any:
        if had.is_row_list(value):
            return [value[i] for i in index.tolist()]
        if isinstance(value, Tensor) and value.ndim and len(value) == had.count:
            return value[index.to(value.device)]
        return value

    return pytree.tree_map(leaf, output, is_leaf=had.is_row_list)


def as_step_output(like: Any, latents: Tensor | None) -> Any:
    """A scheduler output of the same form whose every latent is `latents`."""
    if isinstance(like, tuple):
        return tuple(latents for _ in like)
    fields = {name: latents for name, value in like.items() if isinstance(value, Tensor)}
    return type(like)(**fields)


def latents_of(stepped: Any) -> Any:
    """The latents after a scheduler's step."""
    if isinstance(stepped, tuple):
        return stepped[0]
    return getattr(stepped, "prev_sample", None)
