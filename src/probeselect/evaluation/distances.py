"""How far a set of pictures is from another, by a network's features: FID and KID, computed by torchmetrics.

A scorer that keeps the same kind of picture again and again earns a good reward and a large distance.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probeselect.core.errors import ProbeSelectError, UsageError

SUBSETS, SUBSET_SIZE = 100, 100


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def distances(kept: Tensor, everything: Tensor, seed: int = 0) -> Mapping[str, float]:
    """FID (Heusel et al., NeurIPS 2017) and KID (Binkowski et al., ICLR 2018: mean over random subsets) of features.

    kept [K, D], everything [M, D]. Both are biased upwards by few samples, FID much, so compare only sets of one size.
    Raises UsageError for fewer than two of either, ProbeSelectError where torchmetrics is not installed.
    """
    if min(len(kept), len(everything)) < 2:
        raise UsageError(f"{len(kept)} pictures against {len(everything)}: a distance needs two of each at least")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise ProbeSelectError("FID and KID need torchmetrics: pip install 'probeselect[evaluate]'") from error
    size = min(SUBSET_SIZE, len(kept), len(everything))
    network = _Given(kept.shape[1])
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features are kept in memory: they are in memory already
        metrics: dict[str, Any] = {
            "fid": FrechetInceptionDistance(network),
            "kid": KernelInceptionDistance(network, subsets=SUBSETS, subset_size=size),
        }
        torch.manual_seed(seed)
        for name, metric in metrics.items():
            metric.update(everything.double(), real=True)
            metric.update(kept.double(), real=False)
            value = metric.compute()
            found[name] = float(value[0] if isinstance(value, tuple) else value)
    return found
