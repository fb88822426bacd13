"""Costs and earnings of schedules against slow second formulas: walking step by step, and every draw by hand."""

import itertools
import math

import numpy as np
import pytest

from probeselect.core.metrics import best_of_by_prompt
from probeselect.policies.plans import FixedPlan
from probeselect.policies.simulate import replay

PLANS = [
    FixedPlan(n=5, k=1, steps=(3,), keep=(1,), total_steps=20),
    FixedPlan(n=8, k=2, steps=(4, 9), keep=(4, 2), total_steps=20),
    FixedPlan(n=10, k=1, steps=(1, 3, 5), keep=(5, 2, 1), total_steps=20),
    FixedPlan(n=4, k=1, steps=(0, 18), keep=(4, 3), total_steps=20),
]


@pytest.mark.parametrize(("plan", "rows"), list(zip(PLANS, (36, 80, 48, 79), strict=True)))
def test_rows_are_those_of_walking_the_steps(plan, rows):
    """The first three are the NFE that method papers state for these schedules."""
    running, walked = plan.n, 0
    for step in range(plan.total_steps):
        walked += running
        if step in plan.steps:
            running = plan.keep[plan.steps.index(step)]
    assert plan.rows == walked == rows


def by_hand(plan, scores, rewards, valid):
    """Every draw of n candidates, in plain loops."""
    earned = []
    for p in range(len(rewards)):
        there = [i for i in range(rewards.shape[1]) if valid[p, i]]
        if len(there) < plan.n:
            continue
        kept = []
        for left in itertools.combinations(there, plan.n):
            for step, keep in zip(plan.steps, plan.keep, strict=True):
                left = sorted(left, key=lambda i: -scores[step][p, i])[:keep]
            kept.append(np.mean(sorted(rewards[p, list(left)])[-plan.k :]))
        earned.append(np.mean(kept))
    return earned


@pytest.mark.parametrize("plan", PLANS[:2] + PLANS[3:])
def test_earnings_are_the_mean_over_every_draw(plan):
    rng = np.random.default_rng(0)
    rewards, valid = rng.standard_normal((6, 9)), rng.random((6, 9)) < 0.9
    valid[0, 2:] = False
    scores = {step: rewards + rng.standard_normal((6, 9)) for step in plan.steps}
    spoilt = {step: np.where(valid, table, np.nan) for step, table in scores.items()}
    found = replay(plan, spoilt, np.where(valid, rewards, np.nan), valid, draws=math.comb(9, plan.n))
    np.testing.assert_allclose(found[~np.isnan(found)], by_hand(plan, scores, rewards, valid))
    np.testing.assert_array_equal(np.isnan(found), valid.sum(1) < plan.n)


def test_random_draws_come_near_and_are_the_same_again():
    rng = np.random.default_rng(1)
    rewards = rng.standard_normal((40, 30))
    plan = FixedPlan(n=6, k=1, steps=(3,), keep=(2,), total_steps=20)
    perfect = replay(plan, {3: rewards}, rewards, draws=400)
    assert perfect.mean() == pytest.approx(best_of_by_prompt(6, rewards).mean(), abs=0.03)
    blind = replay(plan, {3: rng.random(rewards.shape)}, rewards, draws=400)
    assert blind.mean() == pytest.approx(best_of_by_prompt(2, rewards).mean(), abs=0.05)
    np.testing.assert_array_equal(perfect, replay(plan, {3: rewards}, rewards, draws=400))


def test_a_step_without_scores_is_named():
    with pytest.raises(ValueError, match=r"after step 3; there are some after \[4\]"):
        replay(PLANS[0], {4: np.zeros((2, 5))}, np.zeros((2, 5)))
