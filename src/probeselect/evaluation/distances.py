"""How far the pictures that scorers keep are from all of a dataset, by a network's features: FID and KID.

A scorer that keeps the same kind of picture again and again earns a good reward and a large distance.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.score_table import ScoreTable
from probeselect.data.dataset import Dataset
from probeselect.data.gallery import Gallery
from probeselect.data.table import Table
from probeselect.evaluation.rows import DistanceRow
from probeselect.evaluation.tables import chosen_places
from probeselect.policies.simulate import CUT

BATCH = 64  # pictures
SUBSETS, SUBSET_SIZE = 100, 100  # of KID


def network_of(given: str | Callable[[Tensor], Tensor], dataset: Dataset) -> Callable[[Table], Tensor]:
    """What gives the features [P, N, D] of a table's finished pictures.

    given: an evaluator of the dataset whose features were stored (maps are averaged over their cells); or a torch
    module or function, or MODULE:NAME of one, that takes uint8 pictures [B, 3, H, W] and returns [B, D].
    Raises UsageError for a name that is neither.
    """
    if isinstance(given, str) and ":" in given:
        module, _, attribute = given.partition(":")
        try:
            given = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"network {given!r}: cannot be imported ({error})") from error
    if not isinstance(given, str):
        return lambda table: _computed(given() if isinstance(given, type) else given, dataset.gallery, table)
    shards = dataset.done()
    known = [name for name in dataset.evaluators if shards and dataset.has_features(name, shards[0])]
    if given not in known:
        raise UsageError(
            f"network {given!r}: neither MODULE:NAME nor an evaluator of {dataset.folder} with stored features "
            f"({', '.join(known) or 'none'})"
        )
    return lambda table: _stored(table, given)


def _stored(table: Table, name: str) -> Tensor:
    """The stored features [P, N, D], a few groups at a time: maps may be large."""
    parts = [table.tensors[f"features/{name}"][rows].float() for rows in torch.arange(len(table)).split(BATCH)]
    return torch.cat([part.flatten(3).mean(-1) if part.ndim > 3 else part for part in parts])


@torch.no_grad()
def _computed(network: Any, gallery: Gallery, table: Table) -> Tensor:
    if isinstance(network, nn.Module):
        network.eval()
    seeds = table.tensors["seeds"]
    keys = [(prompt, seed) for prompt, row in zip(table.prompts, seeds.tolist(), strict=True) for seed in row]
    found = []
    for start in range(0, len(keys), BATCH):
        pictures = [gallery.finished(*key) for key in keys[start : start + BATCH]]
        size = next(picture.size for picture in pictures if picture is not None)
        arrays = [np.zeros((*size[::-1], 3), np.uint8) if p is None else np.asarray(p.resize(size)) for p in pictures]
        found.append(network(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)).float().cpu())
    return torch.cat(found).unflatten(0, seeds.shape)


def distance_rows(table: ScoreTable, features: Tensor, network: str) -> list[DistanceRow]:
    """FID and KID of what each scorer keeps after the step nearest to 20 %, and of the best, against all pictures.

    features: [P, N, D] of the finished pictures; those of candidates that are not valid are not read.
    """
    everything = features[torch.from_numpy(table.valid)]
    ways = [(s.name, s.scores[s.step_near(CUT, table.total_steps)]) for s in table.scorers]
    found = []
    for name, scores in [*ways, ("best of all", table.rewards)]:
        places = torch.tensor(chosen_places(scores, table.valid))
        rows = torch.arange(len(places))[places >= 0]
        kept = features[rows, places[rows]]
        found.append(DistanceRow(name, network, len(kept), *distances(kept, everything)))
    return found


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def distances(kept: Tensor, everything: Tensor, seed: int = 0) -> tuple[float, float]:
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
    found = []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features are kept in memory: they are in memory already
        metrics: list[Any] = [
            FrechetInceptionDistance(network),
            KernelInceptionDistance(network, subsets=SUBSETS, subset_size=size),
        ]
        torch.manual_seed(seed)
        for metric in metrics:
            metric.update(everything.double(), real=True)
            metric.update(kept.double(), real=False)
            value = metric.compute()
            found.append(float(value[0] if isinstance(value, tuple) else value))
    return found[0], found[1]
