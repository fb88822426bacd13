"""How likely a candidate is good enough: from its score at the last rung, the chance that its reward reaches a value.

No shape is assumed. Candidates are put into bins of like score; a bin knows the quantiles of its rewards. As scores say
more of prompts and seeds that are alike than of all, the chance is that of prompts like those it was learnt on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats

BINS = 12
QUANTILES = 41


@dataclass(frozen=True)
class Chances:
    """Of B bins the mean score, rising, and Q quantiles of the rewards, at equal steps of probability from 0 to 1.

    Raises UsageError unless they have these shapes and orders.
    """

    scores: tuple[float, ...]  # [B]
    rewards: tuple[tuple[float, ...], ...]  # [B, Q]

    def __post_init__(self) -> None:
        if len({len(quantiles) for quantiles in self.rewards}) > 1:
            raise UsageError("chances: every bin must hold as many quantiles")
        scores, rewards = np.array(self.scores), np.array(self.rewards)
        if scores.ndim != 1 or rewards.ndim != 2 or len(scores) != len(rewards) or rewards.shape[1] < 2:
            raise UsageError("chances: must hold a score and two or more quantiles of rewards for every bin")
        if not (np.isfinite(scores).all() and np.isfinite(rewards).all()):
            raise UsageError("chances: must hold finite numbers alone")
        if (np.diff(scores) < 0).any() or (np.diff(rewards, axis=1) < 0).any():
            raise UsageError("chances: scores must rise from bin to bin, and rewards within a bin")

    def of(self, score: ArrayLike, reward: float) -> Floats:
        """The chance that a candidate of this score reaches this reward; of scores [...], as many chances."""
        reaching = [_reaching(np.array(quantiles), reward) for quantiles in self.rewards]
        found: Floats = np.interp(np.asarray(score, dtype=np.float64), self.scores, reaching)
        return found


def chances_of(scores: ArrayLike, rewards: ArrayLike) -> Chances:
    """From candidates' scores and rewards, both [M], M at least 1. A better score never gets a lesser chance."""
    x, r = np.asarray(scores, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    quantiles: Any = np.stack([np.quantile(r[each], np.linspace(0, 1, QUANTILES)) for each in bins])
    rising = np.maximum.accumulate(quantiles, axis=0)
    return Chances(tuple(float(x[each].mean()) for each in bins), tuple(tuple(each.tolist()) for each in rising))


def _reaching(quantiles: Any, reward: float) -> float:
    """Share of a distribution that is at least `reward`."""
    place = int(np.searchsorted(quantiles, reward))
    if place in (0, len(quantiles)):
        return 1.0 if place == 0 else 0.0
    low, high = quantiles[place - 1 : place + 1]
    return 1 - (place - 1 + float((reward - low) / (high - low))) / (len(quantiles) - 1)
