"""Whether a score can be taken at its word: what candidates that got about the same score earned."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probeselect.core.metrics import Floats

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Bins of equally many candidates by rising score, all [B]: mean score, mean reward, and the middle 80 % of it."""

    score: Floats
    reward: Floats
    low: Floats
    high: Floats


def calibration(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike, bins: int = BINS) -> Calibration:
    """Scores and rewards of all valid entries of [P, N] tables, pooled, in at most `bins` bins.

    Candidates of one score stay in one bin, so a scorer with few values has fewer bins.
    """
    v = np.asarray(valid, dtype=bool)
    s, r = np.asarray(scores, dtype=np.float64)[v], np.asarray(rewards, dtype=np.float64)[v]
    edges = np.unique(np.quantile(s, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, max(len(edges) - 2, 0))
    members = [place == b for b in np.unique(place)]
    low, high = (np.array([np.quantile(r[m], q) for m in members]) for q in (0.1, 0.9))
    return Calibration(np.array([s[m].mean() for m in members]), np.array([r[m].mean() for m in members]), low, high)
