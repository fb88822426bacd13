"""Puts our function around a module's forward for the length of a `with` block.

Not `diffusers.hooks.HookRegistry`: on removal that leaves its registry and a bound `forward` on the user's module, and
puts back a stale forward when the pipeline has renewed its CPU-offload hooks meanwhile (they do, after every call).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def around_forward(module: nn.Module, wrap: Callable[[Forward, Forward], Forward]) -> Iterator[None]:
    """Replace what calling `module` runs by `wrap(usual, eager)`.

    `usual` is what it ran so far, compiled or not, offload hooks and all; `eager` is the same uncompiled, in which
    hooks on inner modules are sure to fire. The module is left as it was found.
    """
    compiled_in_place = getattr(module, "_compiled_call_impl", None) is not None
    slot = "_compiled_call_impl" if compiled_in_place else "forward"
    found = module.__dict__.get(slot)
    usual: Forward = getattr(module, slot)
    eager: Forward = getattr(module, "_orig_mod", module._call_impl if compiled_in_place else usual)
    ours = functools.wraps(usual)(wrap(usual, eager))
    setattr(module, slot, ours)
    try:
        yield
    finally:
        if module.__dict__.get(slot) is ours:  # else the pipeline has renewed its own hooks, and ours is gone
            if found is None:
                delattr(module, slot)
            else:
                setattr(module, slot, found)
