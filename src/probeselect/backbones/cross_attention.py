"""What each text token is looked at by: a U-Net's cross-attention probabilities, read beside its own attention.

Knows where diffusers' U-Nets have their cross-attention (modules named `attn2`) and how queries and keys become
probabilities. Does not know which denoiser call or which rows count: the TapReader says.

Shapes: rows of a denoiser call; n candidates; T text tokens; H, W cells of one resolution of the U-Net.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probeselect.core.errors import ProbeSelectError, UsageError

SIDE = 16  # cells of the shorter side where attention tells objects best (Hertz et al., ICLR 2023; Chefer et al., 2023)
_LAYER = re.compile(r"(down_blocks|mid_block|up_blocks)\..*\.attn2")

Size = tuple[int, int]


def cross_attention_layers(denoiser: nn.Module) -> list[Any]:
    """The modules of a U-Net in which the image attends to the text; UsageError where there are none."""
    layers = [module for path, module in denoiser.named_modules() if _LAYER.fullmatch(path)]
    if not layers:
        raise UsageError(
            f"attention: {type(denoiser).__name__} has no cross-attention layers (attn2) in U-Net blocks, so there is "
            "no map of a token to read; use another tap, or the scorer preview:EVALUATOR"
        )
    return layers


def sizes_of(height: int, width: int) -> list[Size]:
    """Height and width of all resolutions of a U-Net on latents of this size, which it halves, rounding up."""
    sizes = [(height, width)]
    while sizes[-1] != (1, 1):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class CrossAttention:
    """Queries and keys of one denoiser call, at the resolution whose shorter side is nearest to SIDE.

    They are taken from the layers' own projections, so nothing is computed twice and the model's outputs are what
    they were. Those of other resolutions are let go as soon as a nearer one is met; of two that are equally near,
    the smaller counts. Text tokens are taken to be unmasked, as they are in all U-Net pipelines for pictures.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was kept."""
        self._size: Size | None = None
        self._queries: dict[Any, Tensor] = {}  # layer -> [rows, H * W, heads * D], of the size alone
        self._keys: dict[Any, Tensor] = {}  # layer -> [rows, T, heads * D]

    def hooks(self, denoiser: nn.Module, latent_size: Callable[[], Size | None]) -> list[Any]:
        """Register hooks and return their handles. `latent_size`: of the call to be kept, None in any other."""
        handles = []
        for layer in cross_attention_layers(denoiser):
            handles.append(layer.to_q.register_forward_hook(self._on_queries(layer, latent_size)))
            handles.append(layer.to_k.register_forward_hook(self._on_keys(layer, latent_size)))
        return handles

    def probabilities(self, conditional: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over heads and layers of softmax(Q K' scale), a map of every token: [n, T, H, W] in fp32.

        conditional: [rows, ...] -> [n, ...]. Raises ProbeSelectError when no layer's projections were called.
        """
        if self._size is None or self._queries.keys() - self._keys.keys():
            raise ProbeSelectError(
                "tap: 'attention' read no queries or no keys in the denoiser's conditional call; "
                "fused projections hide them: call pipe.unfuse_qkv_projections() first"
            )
        total = torch.zeros(())
        for layer, queries in self._queries.items():
            q, k = (_by_head(conditional(rows), layer.heads) for rows in (queries, self._keys[layer]))
            total = total.to(q.device) + (q @ k.mT * layer.scale).softmax(-1).mean(1)  # [n, H * W, T]
        return (total / len(self._queries)).mT.unflatten(2, self._size)

    def _on_queries(self, layer: Any, latent_size: Callable[[], Size | None]) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            if (latent := latent_size()) is None:
                return
            cells = output.shape[1]
            size = next((size for size in sizes_of(*latent) if size[0] * size[1] == cells), None)
            if size is None:
                raise ProbeSelectError(f"tap: 'attention' cannot lay {cells} cells out on latents of {latent}")
            if self._size is None or _rank(size) < _rank(self._size):
                self._size, self._queries = size, {}
            if size == self._size:
                self._queries[layer] = output.detach()

        return hook

    def _on_keys(self, layer: Any, latent_size: Callable[[], Size | None]) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            if latent_size() is not None:
                self._keys[layer] = output.detach()

        return hook


def _rank(size: Size) -> tuple[int, Size]:
    """Lower is better."""
    return abs(min(size) - SIDE), size


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """[n, tokens, heads * D] -> [n, heads, tokens, D] in fp32"""
    return rows.float().unflatten(2, (heads, -1)).transpose(1, 2)
