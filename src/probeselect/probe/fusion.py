"""A probe's prediction and the preview's reward as one score, for those who will pay for decoding the preview.

Two weights for every evaluator and rung, by least squares within prompts. They are fitted on val prompts, where the
probe is no better than it will be elsewhere: on its training prompts it would get too much weight.
"""

import numpy as np
from numpy.typing import ArrayLike

from probeselect.core.metrics import Floats, deviations
from probeselect.probe.config import Fusion


def fit_fusion(
    evaluator: str, rung: float, scores: ArrayLike, previews: ArrayLike, rewards: ArrayLike, valid: ArrayLike
) -> Fusion:
    """The weights that best predict how far a reward is from its prompt's mean; all tables [P, N].

    No weight is negative: where the free solution has one below zero, that scorer gets nothing.
    """
    x = np.stack([deviations(table, valid) for table in (scores, previews)], 1)  # [V, 2]
    y = deviations(rewards, valid)  # [V]
    a, b = np.linalg.lstsq(x, y, rcond=None)[0]
    if b < 0:
        a, b = _slope(x[:, 0], y), 0.0
    elif a < 0:
        a, b = 0.0, _slope(x[:, 1], y)
    return Fusion(evaluator, rung, float(a), float(b))


def _slope(x: Floats, y: Floats) -> float:
    """Least squares of y on x alone; 1 where that would turn the order of x round."""
    slope = float(x @ y) / max(float(x @ x), 1e-12)
    return slope if slope > 0 else 1.0
