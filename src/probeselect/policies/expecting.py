"""What another round of candidates is expected to add, from the scores of a prompt's rounds so far.

Within a prompt the champions of rounds, the best-scored of each, are taken to be normal. What their mean and variance
are is learnt from the prompt itself, and at first from what other prompts are like: the mean is drawn to the mean of
all prompts, the variance to that of prompts of such a mean (prompts whose candidates are all good differ less). The
gain is the expected improvement over the best so far (Mockus, 1978; the index of a box that is worth opening,
Weitzman, Econometrica 47, 1979), in units of the reward.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probeselect.core.metrics import Floats

WEIGHT = 5  # champions that the variance of prompts like this one counts for
TINY = 1e-8  # of the scores' variance: below it they are all alike


@dataclass(frozen=True)
class Expectation:
    """What champions are like, over prompts. All but `slope` in units of the score."""

    mean: float  # of the prompts' means
    between: float  # their variance
    low: float  # the least and the largest of them
    high: float
    log_within: float  # logarithm of a prompt's variance where its mean is `mean`
    log_within_slope: float  # and how that changes with the mean
    slope: float  # reward that is gained by a point of score, within prompts

    def gain(self, champions: ArrayLike, kth: ArrayLike, k: int = 1) -> Floats:
        """After each round, what the next one is expected to add to the mean reward of the best k: [..., W].

        champions: [..., W], best score of each round. kth: [..., W], the k-th best score of all candidates so far.
        """
        import torch  # here, so that wrong arguments are refused without waiting for it

        x, best = np.asarray(champions, dtype=np.float64), np.asarray(kth, dtype=np.float64)
        n = np.arange(1, x.shape[-1] + 1)
        seen = np.cumsum(x, axis=-1) / n
        squares = np.maximum(np.cumsum((x - self.mean) ** 2, axis=-1) - n * (seen - self.mean) ** 2, 0)
        usual = self._variance(seen)
        mean = (self.between * n * seen + usual * self.mean) / (self.between * n + usual)
        variance = (WEIGHT * self._variance(mean) + squares) / (WEIGHT + n - 1)
        spread = np.sqrt(variance * (1 + self.between / (self.between * n + variance)))
        z = (mean - best) / spread
        below = torch.special.ndtr(torch.from_numpy(z)).numpy()
        found: Floats = self.slope * spread * (z * below + np.exp(-z * z / 2) / np.sqrt(2 * np.pi)) / k
        return found

    def _variance(self, mean: Floats) -> Floats:
        """Of a prompt's champions, by the prompt's mean."""
        inside = np.clip(mean, self.low, self.high)
        found: Floats = np.exp(self.log_within + self.log_within_slope * (inside - self.mean))
        return found


def expectation_of(champions: ArrayLike, rewards: ArrayLike) -> Expectation:
    """From champions of many rounds, scores and rewards [P, M], M rounds of each prompt."""
    x, r = np.asarray(champions, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    means = x.mean(1)  # [P]
    least = max(TINY * x.var(), 1e-30)
    logs = np.log(np.maximum(x.var(1), least))
    about = means - means.mean()
    tilt = float(about @ logs / max(about @ about, least))
    off, gained = x - means[:, None], r - r.mean(1, keepdims=True)
    slope = float((off * gained).sum() / max((off * off).sum(), least))
    between = max(float(means.var()), least)
    return Expectation(
        float(means.mean()), between, float(means.min()), float(means.max()), float(logs.mean()), tilt, slope
    )
