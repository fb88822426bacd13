"""A probe's score and a preview's reward as one: weights that are right, and a scorer that uses them."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from probeselect.core.errors import UsageError
from probeselect.core.files import checked
from probeselect.core.metrics import within_prompt_spearman
from probeselect.probe.config import Fusion
from probeselect.probe.fusion import fit_fusion


def tables(probe_noise: float, preview_noise: float, prompts: int = 400) -> tuple[np.ndarray, ...]:
    """Scores, previews, rewards, valid [P, 5]; every prompt has a level of its own, which says nothing of seeds."""
    draw = np.random.default_rng(0)
    rewards = draw.standard_normal((prompts, 5))
    scores = rewards + probe_noise * draw.standard_normal(rewards.shape) + 10 * draw.standard_normal((prompts, 1))
    previews = 3 * (rewards + preview_noise * draw.standard_normal(rewards.shape)) + draw.standard_normal((prompts, 1))
    return scores, previews, rewards + 5 * draw.standard_normal((prompts, 1)), draw.random(rewards.shape) < 0.9


def centred(table: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Second formula: prompt by prompt, those with a choice."""
    return np.concatenate([row[v] - row[v].mean() for row, v in zip(table, valid, strict=True) if v.sum() > 1])


@pytest.mark.parametrize(("probe_noise", "preview_noise"), [(0.5, 1.0), (1.0, 0.5)])
def test_weights_are_those_of_least_squares_within_prompts(probe_noise, preview_noise):
    scores, previews, rewards, valid = tables(probe_noise, preview_noise)
    fusion = fit_fusion("e", 0.2, scores, previews, rewards, valid)
    want, _ = nnls(np.stack([centred(scores, valid), centred(previews, valid)], 1), centred(rewards, valid))
    assert (fusion.probe, fusion.preview) == pytest.approx(tuple(want), rel=1e-6)
    fused = fusion(torch.from_numpy(scores), torch.from_numpy(previews)).numpy()
    found = [within_prompt_spearman(table, rewards, valid).mean for table in (fused, scores, previews)]
    assert found[0] > max(found[1:]) + 0.02


def test_what_is_not_valid_is_not_looked_at():
    scores, previews, rewards, valid = tables(0.5, 1.0)
    spoilt = [np.where(valid, table, np.nan) for table in (scores, previews, rewards)]
    assert fit_fusion("e", 0.2, *spoilt, valid) == fit_fusion("e", 0.2, scores, previews, rewards, valid)


def test_a_scorer_that_misleads_gets_nothing_and_orders_stay():
    scores, previews, rewards, valid = tables(0.5, 1.0)
    against = fit_fusion("e", 0.2, scores, -previews, rewards, valid)
    assert against.preview == 0 and against.probe > 0
    against = fit_fusion("e", 0.2, -scores, previews, rewards, valid)
    assert against.probe == 0 and against.preview > 0
    nothing = fit_fusion("e", 0.2, -scores, -previews, rewards, valid)
    assert min(nothing.probe, nothing.preview) >= 0


@pytest.mark.parametrize("weights", [(float("nan"), 1.0), (1.0, float("inf")), ("1", 1.0)])
def test_weights_that_are_no_numbers_are_not_written(weights):
    with pytest.raises(UsageError, match="must be a number"):
        checked(Fusion("e", 0.2, *weights), "fusion")
