"""Choosing several candidates that are good and unlike each other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from probeselect.policies.policy import best_first


def diverse(scores: Tensor, similarity: Tensor, count: int, weight: float) -> list[int]:
    """Indices of `count` candidates, in the order in which they are taken; the best-scored one first.

    scores: [N]; NaN ranks below everything. similarity: [N, N], in [-1, 1]. weight: in [0, 1].
    Greedy maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): next is the candidate with the largest
    (1 - weight) * standing - weight * (its largest similarity to those taken), where a candidate's standing is its
    place among the scores, from 1 for the best to 0 for the worst: ranks, because a score has no scale of its own.
    """
    order = best_first(scores)
    standing = torch.empty(len(order), dtype=torch.float64)
    standing[order] = torch.linspace(1, 0, len(order), dtype=torch.float64)
    taken = order[:1] if count else []
    while len(taken) < min(count, len(order)):
        likeness = similarity[:, taken].double().amax(1)
        worth = (1 - weight) * standing - weight * likeness
        worth[taken] = -torch.inf
        taken.append(max(order, key=lambda i: float(worth[i])))  # of equals, the better-scored
    return taken


def spread_out(scores: Tensor, maps: Sequence[Tensor], count: int, weight: float) -> list[int]:
    """`diverse` by the mean cosine similarity of several taps' maps [N, C, H, W], best-scored first."""
    similarity = torch.stack([cosine_similarity(tap).cpu() for tap in maps]).mean(0)
    taken = diverse(scores, similarity, count, weight)
    return [i for i in best_first(scores) if i in taken]


def cosine_similarity(maps: Tensor) -> Tensor:
    """Of activations [N, C, H, W], each less the mean over candidates: [N, N] in [-1, 1].

    What all candidates of a prompt share says nothing of how they differ.
    """
    flat = maps.flatten(1).double()
    flat = torch.nn.functional.normalize(flat - flat.mean(0), dim=1)
    return flat @ flat.T
