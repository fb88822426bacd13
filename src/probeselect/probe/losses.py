"""The probe's losses, pure functions of one batch: listwise ranking, prompt contrast, feature distillation.

Shapes: P prompts, N candidates per prompt, D the width of an embedding. `valid` [P, N] (bool) marks the
entries that count; what lies elsewhere, NaN included, neither changes a loss nor receives a gradient. With no
valid entry a loss is 0 and still has a graph. Losses never see epochs: annealing hands in the numbers.
Equations are those of arXiv 2603.02829.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from probeselect.core.errors import UsageError


def listwise(
    scores: Tensor,
    rewards: Tensor,
    valid: Tensor,
    temperature: float,
    margin: float,
    scope: Literal["prompt", "batch"] = "prompt",
) -> Tensor:
    """Eq. 5: each candidate against those that are clearly worse, averaged over the valid candidates.

    For candidate i: -log( exp(s_i/T) / ( exp(s_i/T) + sum over {j: y_j + margin < y_i} exp(s_j/T) ) ), with
    predicted `scores` s and true `rewards` y, both [P, N]; `margin` is in units of the reward. j runs over
    the prompt of i (`scope="prompt"`) or over all candidates of the batch (`"batch"`).
    Raises UsageError for temperature <= 0, margin < 0 or an unknown scope, ValueError for unequal shapes.
    """
    if scope not in ("prompt", "batch"):
        raise UsageError(f"scope = {scope!r}: must be 'prompt' or 'batch'")
    if scope == "batch":
        scores, rewards, valid = scores.reshape(1, -1), rewards.reshape(1, -1), valid.reshape(1, -1)
    worse = _worse(scores, rewards, valid, temperature, margin)  # [P, i, j]
    s = scores.masked_fill(~valid, 0) / temperature  # [P, N]
    itself = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)  # [i, j]
    terms = s[:, None, :].masked_fill(~(worse | itself), -torch.inf)  # [P, i, j]
    return _mean_over(torch.logsumexp(terms, dim=2) - s, valid)


def pairwise_logistic(scores: Tensor, rewards: Tensor, valid: Tensor, temperature: float, margin: float) -> Tensor:
    """log(1 + exp(-(s_i - s_j) / T)), averaged over the pairs of one prompt with y_j + margin < y_i.

    RankNet (Burges et al., ICML 2005), Eq. 3 with target 1. Shapes, units and errors as for `listwise`.
    """
    worse = _worse(scores, rewards, valid, temperature, margin)  # [P, i, j]
    s = scores.masked_fill(~valid, 0) / temperature
    return _mean_over(F.softplus(s[:, None, :] - s[:, :, None]), worse)


def listnet(scores: Tensor, rewards: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softmax(s / T) from softmax(y / T) within a prompt, averaged over prompts with a choice.

    ListNet, top one (Cao et al., ICML 2007, Eq. 6 and 7). `rewards` in units in which T means something.
    """
    _check_temperature(temperature)
    choice = valid.sum(1) > 1  # [P]
    target = (rewards / temperature).masked_fill(~valid, -torch.inf)[choice].softmax(1)  # [U, N]
    log_p = (scores / temperature).masked_fill(~valid, -torch.inf)[choice].log_softmax(1)
    terms = -(target * log_p.masked_fill(~valid[choice], 0)).sum(1)
    return terms.sum() / choice.sum().clamp(min=1) + scores.masked_fill(~valid, 0).sum() * 0


def standardised_regression(scores: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of the scores, less their prompt's mean, from the rewards' z-scores within the prompt.

    A prompt whose valid rewards are all equal has z-scores of 0.
    """
    centred, spread = _centred(rewards, valid)
    z = torch.where(spread > 0, centred / spread.clamp(min=1e-12), 0)
    return _mean_over((_centred(scores, valid)[0] - z).square(), valid)


def annealed(ends: tuple[float, float], done: float) -> float:
    """A number on its way from the first to the second of `ends`, linearly; `done` in [0, 1]."""
    first, last = ends
    return first + (last - first) * min(max(done, 0.0), 1.0)


def _centred(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Values [P, N] less their prompt's mean (0 where invalid), and their spread [P, 1] (population)."""
    count = valid.sum(1, keepdim=True).clamp(min=1)
    kept = values.masked_fill(~valid, 0)
    centred = (kept - kept.sum(1, keepdim=True) / count).masked_fill(~valid, 0)
    return centred, (centred.square().sum(1, keepdim=True) / count).sqrt()


def _worse(scores: Tensor, rewards: Tensor, valid: Tensor, temperature: float, margin: float) -> Tensor:
    """[P, i, j]: whether j is clearly worse than i, both valid."""
    if not scores.shape == rewards.shape == valid.shape:
        raise ValueError(f"scores {tuple(scores.shape)}, rewards {tuple(rewards.shape)} and valid must agree")
    _check_temperature(temperature)
    if not margin >= 0:
        raise UsageError(f"margin = {margin}: must be 0 or more")
    worse = rewards[:, None, :] + margin < rewards[:, :, None]
    return worse & valid[:, None, :] & valid[:, :, None]


def info_nce(u: Tensor, e: Tensor, valid: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Eq. 6: InfoNCE with cosine similarity, averaged over the valid candidates.

    The positive of u[p, n] (`u` is [P, N, D]) is the text embedding of its own prompt, e[first + p] (`e` is [Q, D],
    Q >= first + P); its negatives are those of the other prompts, which must differ. Raises UsageError for
    temperature <= 0.
    """
    _check_temperature(temperature)
    u = F.normalize(u.masked_fill(~valid[..., None], 0), dim=-1)
    logits = u @ F.normalize(e, dim=-1).T / temperature  # [P, N, Q]
    own = logits[:, :, first : first + len(u)].diagonal(dim1=0, dim2=2).T  # [P, N]
    return _mean_over(torch.logsumexp(logits, dim=2) - own, valid)


def feature_distillation(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error between predicted and evaluator features, [P, N, ...], over valid candidates.

    Raises ValueError for shapes that differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must agree")
    error = (predicted - target).reshape(*valid.shape, -1)  # [P, N, D]
    error = error.masked_fill(~valid[..., None], 0)
    return _mean_over(error.square().mean(dim=2), valid)


def _mean_over(values: Tensor, valid: Tensor) -> Tensor:
    return values.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UsageError(f"temperature = {temperature}: must be above 0")
