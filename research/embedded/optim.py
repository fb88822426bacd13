"""Muon: momentum whose update is orthogonalised, for weight matrices; AdamW for everything else.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale that matches
AdamW's update size is from J. Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, Eq. 4.
`torch.optim.Muon` takes two-dimensional weights only; here a convolution is the matrix [out, in * kh * kw].
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values land in about [0.7, 1.2]. matrix [R, C].

    Newton-Schulz on the small Gram matrix: X_k = P_k X_0 with P_k a polynomial in X_0 X_0^T, so the long side is
    touched twice only.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = one = torch.eye(len(x), device=x.device)
    for _ in range(iterations):
        factor = a * one + (b * gram + c * gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon on weights of two or more dimensions named in `matrices`, AdamW (beta 0.9, 0.99) on `others`."""

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], weight_decay: float = 0.01):
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "muon": True},
            {"params": list(others), "muon": False, "rate_scale": 0.5},
        ]
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = (self._muon if group["muon"] else self._adam)(weight, weight.grad)
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _muon(self, weight: Tensor, grad: Tensor) -> Tensor:
        slots = self.state[weight]
        if not slots:
            slots["momentum"] = torch.zeros_like(weight)
        momentum = slots["momentum"].lerp_(grad, 0.05)
        matrix = grad.lerp(momentum, 0.95).flatten(1)
        return (orthogonalise(matrix) * (0.2 * max(matrix.shape) ** 0.5)).view_as(weight)

    def _adam(self, weight: Tensor, grad: Tensor) -> Tensor:
        slots = self.state[weight]
        if not slots:
            slots |= {
                "step": torch.zeros(()),
                "mean": torch.zeros_like(weight),
                "square": torch.zeros_like(weight),
            }
        slots["step"] += 1
        slots["mean"].lerp_(grad, 0.1)
        slots["square"].lerp_(grad**2, 0.01)
        mean = slots["mean"] / (1 - 0.9 ** slots["step"])
        square = slots["square"] / (1 - 0.99 ** slots["step"])
        return mean / (square.sqrt() + 1e-8)


def split_parameters(module: nn.Module, outside: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, others): a parameter whose name starts with one of `outside` is never a matrix."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (matrices if parameter.ndim >= 2 and not name.startswith(outside) else others).append(parameter)
    return matrices, others
