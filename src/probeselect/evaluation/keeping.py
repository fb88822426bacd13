"""How far the kept pictures of a dataset are from all of them, by the features of any network."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probeselect.core.errors import UsageError
from probeselect.core.judged import Judged
from probeselect.data.dataset import Dataset
from probeselect.data.gallery import Gallery
from probeselect.data.table import Table
from probeselect.evaluation.distances import distances
from probeselect.evaluation.tables import chosen_places
from probeselect.policies.simulate import CUT

BATCH = 64  # pictures


def network_of(name: str, dataset: Dataset) -> Callable[[Table], Tensor]:
    """What gives the features [P, N, D] of a table's finished pictures.

    name: an evaluator of the dataset whose features were stored (maps are averaged over their cells), or MODULE:NAME,
    a torch module or callable of Python that takes uint8 pictures [B, 3, H, W] and returns [B, D].
    Raises UsageError for a name that is neither.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            network = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"--network {name!r}: cannot be imported ({error})") from error
        return lambda table: _computed(network() if isinstance(network, type) else network, dataset.gallery, table)
    shards = dataset.done()
    if name not in dataset.evaluators or not shards or not dataset.has_features(name, shards[0]):
        known = [each for each in dataset.evaluators if shards and dataset.has_features(each, shards[0])]
        raise UsageError(
            f"--network {name!r}: neither MODULE:NAME nor an evaluator of {dataset.folder} with stored features "
            f"({', '.join(known) or 'none'})"
        )
    return lambda table: _stored(table, name)


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


def of_the_kept(judged: Judged, features: Tensor, network: str) -> list[dict[str, Any]]:
    """FID and KID of what each scorer keeps after the step nearest to 20 %, and of the best, against all pictures.

    features: [P, N, D] of the finished pictures; those of candidates that are not valid are not read.
    """
    valid = torch.from_numpy(judged.valid)
    everything = features[valid]
    tables = [(s.name, s.scores[s.step_near(CUT, judged.total_steps)]) for s in judged.scorers]
    found = []
    for name, scores in [*tables, ("best of all", judged.rewards)]:
        places = torch.tensor(chosen_places(scores, judged.valid))
        rows = torch.arange(len(places))[places >= 0]
        kept = features[rows, places[rows]]
        found.append({"kept_by": name, "network": network, "pictures": len(kept), **distances(kept, everything)})
    return found
