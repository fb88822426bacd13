"""What is done to a tap's maps before a probe sees them: a fixed basis, and a grid of one size."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Fixed random basis [rows, columns] with orthonormal rows (the identity where nothing is to be reduced)."""
    if rows >= columns:
        return torch.eye(rows, columns)
    square = torch.randn(columns, columns, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(square)[0][:rows].contiguous()


def project(basis: Tensor, maps: Tensor) -> Tensor:
    """1x1 projection of maps [N, C, H, W] by a basis [P, C], in fp32: [N, P, H, W]."""
    return (basis @ maps.float().flatten(2)).unflatten(2, maps.shape[2:])


def to_grid(maps: Tensor, side: int) -> Tensor:
    """Bring the shorter side of maps [N, C, H, W] to `side`; the aspect ratio stays."""
    height, width = maps.shape[-2:]
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    return maps if size == (height, width) else F.interpolate(maps, size=size, mode="bilinear", antialias=True)


def reduced(maps: Tensor, side: int) -> Tensor:
    """Maps whose shorter side is longer than `side` brought to it, as the probe itself would; others as they are.

    Commutes with the standardisation, so a probe trained on reduced maps reads whole ones alike.
    """
    return to_grid(maps, side) if min(maps.shape[-2:]) > side else maps


def sinusoid(fraction: Tensor, width: int) -> Tensor:
    """Sines and cosines of a fraction in [0, 1]: [N] -> [N, width]."""
    frequencies = torch.exp(torch.linspace(0, math.log(50.0), width // 2, device=fraction.device))
    angles = fraction.float()[:, None] * frequencies * math.pi
    return torch.cat([angles.sin(), angles.cos()], 1)
