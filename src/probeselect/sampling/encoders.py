"""Runs every text encoder once per prompt: remembers its outputs, row by row, for the length of a rollout."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from probeselect.sampling.hooks import Forward, around_forward
from probeselect.sampling.rows import Rows, join, split


class EncoderMemo:
    """Outputs of a pipeline's text encoders, by the row of input that made them. `computed_rows` counts real work."""

    def __init__(self) -> None:
        self.computed_rows = 0
        self._known: dict[tuple[Any, ...], Rows] = {}

    @contextmanager
    def remembering(self, pipe: Any) -> Iterator[None]:
        """While open, the text encoders of `pipe` compute only rows that they have not met."""
        with ExitStack() as stack:
            for name, component in pipe.components.items():
                if name.startswith("text_encoder") and isinstance(component, nn.Module):
                    stack.enter_context(around_forward(component, self._wrapper(name)))
            yield

    def _wrapper(self, name: str) -> Any:
        def wrap(usual: Forward, _eager: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                leaves, spec = pytree.tree_flatten((args, kwargs))
                tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in tensors}
                if len(counts) != 1 or 0 in counts:
                    return usual(*args, **kwargs)  # not a batch of rows: nothing to remember it by
                n = counts.pop()
                others = repr([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
                keys = [(name, others, *(_bytes(leaf[i]) for leaf in tensors)) for i in range(n)]
                unmet = [i for i in range(n) if keys[i] not in self._known and keys.index(keys[i]) == i]
                if unmet:
                    picked = [leaf[unmet] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                    args, kwargs = pytree.tree_unflatten(picked, spec)
                    output = usual(*args, **kwargs)
                    self.computed_rows += len(unmet)
                    for i, part in zip(unmet, split(output, len(unmet)), strict=True):
                        self._known[keys[i]] = part
                return join([self._known[key] for key in keys])

            return forward

        return wrap


def _bytes(row: Tensor) -> tuple[Any, ...]:
    plain = row.detach().cpu().contiguous()
    return (
        plain.dtype,
        tuple(plain.shape),
        plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"",
    )
