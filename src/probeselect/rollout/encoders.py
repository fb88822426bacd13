"""Runs every encoder once per text or picture: remembers its outputs, row by row, for the length of a rollout.

The prior of a combined pipeline is one of them: its noise is the candidate's own, so each of its steps comes again with
the same rows in every call.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from probeselect.rollout.hooks import Forward, around_forward
from probeselect.rollout.rows import Rows, join, split

_ENCODERS = re.compile(r"(prior_)?(text|image)_encoder(_\d)?|prior_prior")


class EncoderMemo:
    """Outputs of a pipeline's encoders, by the row of input that made them. `computed_rows` counts real work."""

    def __init__(self) -> None:
        self.computed_rows = 0
        self._known: dict[tuple[Any, ...], Rows] = {}

    @contextmanager
    def remembering(self, pipe: Any) -> Iterator[None]:
        """While open, the encoders of `pipe` compute only rows that they have not met."""
        with ExitStack() as stack:
            for name, module in _encoders(pipe).items():
                stack.enter_context(around_forward(module, self._wrapper(name)))
            yield

    def _wrapper(self, name: str) -> Any:
        def wrap(usual: Forward, _eager: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                leaves, spec = pytree.tree_flatten((args, kwargs))
                tensors = [leaf for leaf in leaves if _is_batch(leaf)]
                counts = {leaf.shape[0] for leaf in tensors}
                if len(counts) != 1 or 0 in counts or _has_state([*args, *kwargs.values()]):
                    return usual(*args, **kwargs)  # not a batch of rows: nothing to remember it by
                n = counts.pop()
                others = repr([leaf for leaf in leaves if not _is_batch(leaf)])
                keys = [(name, others, *(_digest(leaf[i]) for leaf in tensors)) for i in range(n)]
                unmet = [i for i in range(n) if keys[i] not in self._known and keys.index(keys[i]) == i]
                if unmet:
                    picked = [leaf[unmet] if _is_batch(leaf) else leaf for leaf in leaves]
                    args, kwargs = pytree.tree_unflatten(picked, spec)
                    output = usual(*args, **kwargs)
                    self.computed_rows += len(unmet)
                    if any(len(leaf) != len(unmet) for leaf in pytree.tree_leaves(output) if _is_batch(leaf)):
                        if len(unmet) == n:
                            return output  # rows are not its first dimension (ChatGLM)
                        self.computed_rows += n - len(unmet)
                        args, kwargs = pytree.tree_unflatten(leaves, spec)
                        return usual(*args, **kwargs)
                    for i, part in zip(unmet, split(output, len(unmet)), strict=True):
                        self._known[keys[i]] = part
                return join([self._known[key] for key in keys])

            return forward

        return wrap


def _encoders(pipe: Any) -> dict[str, nn.Module]:
    """Encoders of texts and pictures, and the half of the autoencoder that encodes, by name."""
    found = {
        name: component
        for name, component in pipe.components.items()
        if _ENCODERS.fullmatch(name) and isinstance(component, nn.Module)
    }
    for name in ("vae", "movq"):
        encoder = getattr(getattr(pipe, name, None), "encoder", None)
        if isinstance(encoder, nn.Module):
            found[f"{name}.encoder"] = encoder
    return found


def _has_state(given: list[Any]) -> bool:
    """Whether a call is given something that it may leave its mark on, such as the cache of a causal encoder."""
    return any(not isinstance(value, Tensor | bool | int | float | str | None | torch.dtype) for value in given)


def _is_batch(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _digest(row: Tensor) -> tuple[Any, ...]:
    plain = row.detach().cpu().contiguous()
    data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return plain.dtype, tuple(plain.shape), hashlib.sha256(data).digest()
