"""Every metric against a second formula: scipy, plain loops, or enumeration of all draws."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from probeselect.core.metrics import (
    best_of_by_prompt,
    bootstrap_interval,
    deviations,
    figures,
    gain_share,
    ndcg,
    pooled_spearman,
    top_k_hit,
    within_prompt_kendall,
    within_prompt_spearman,
)

Table = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


@pytest.fixture(params=range(6))
def table(request: pytest.FixtureRequest) -> Table:
    """Scores, rewards, valid [30, 6] with many ties, invalid entries (NaN), lone and missing candidates."""
    rng = np.random.default_rng(request.param)
    scores, rewards = rng.integers(0, 4, (2, 30, 6)).astype(float)
    valid = rng.random((30, 6)) < 0.7
    valid[0], valid[1], valid[2] = False, [True] + [False] * 5, True
    scores[3], rewards[4] = 1.0, 2.0  # constant
    scores[~valid], rewards[~valid] = np.nan, np.inf
    return scores, rewards, valid


def choosing(table: Table) -> list[tuple[list[float], list[float]]]:
    """(scores, rewards) of the valid candidates of each prompt that has two of them."""
    rows = [(s[v].tolist(), r[v].tolist()) for s, r, v in zip(*table, strict=True)]
    return [row for row in rows if len(row[0]) > 1]


def test_within_prompt_spearman(table: Table) -> None:
    expected, constant = [], 0
    for s, r in choosing(table):
        if len(set(r)) == 1:
            continue
        constant += len(set(s)) == 1
        expected.append(0.0 if len(set(s)) == 1 else stats.spearmanr(s, r).statistic)
    result = within_prompt_spearman(*table)
    np.testing.assert_allclose(result.per_prompt, expected, atol=1e-12)
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.constant_scores == constant >= 1
    assert result.used.sum() == len(expected) < 30
    assert not result.used[[0, 1, 4]].any()


def test_which_prompts_are_used_does_not_depend_on_the_scores(table: Table) -> None:
    _, rewards, valid = table
    constant = within_prompt_spearman(np.zeros_like(rewards), rewards, valid)
    np.testing.assert_array_equal(constant.used, within_prompt_spearman(*table).used)
    assert constant.mean == 0
    assert constant.constant_scores == constant.used.sum()


def test_pooled_spearman(table: Table) -> None:
    scores, rewards, valid = table
    expected = stats.spearmanr(scores[valid], rewards[valid]).statistic
    assert pooled_spearman(*table) == pytest.approx(expected)


def test_pooled_rewards_a_constant_per_prompt_and_within_prompt_does_not() -> None:
    rng = np.random.default_rng(0)
    easy = np.repeat(rng.normal(size=(200, 1)), 5, axis=1)
    rewards = easy + 0.3 * rng.normal(size=(200, 5))
    assert pooled_spearman(easy, rewards) > 0.9
    assert within_prompt_spearman(easy, rewards).mean == 0


def test_choice_metrics(table: Table) -> None:
    rows = choosing(table)
    first = [[y for x, y in zip(s, r, strict=True) if x == max(s)] for s, r in rows]  # equals share the choice
    chosen = [np.mean(rewards) for rewards in first]
    best = [max(r) for _, r in rows]
    average = [sum(r) / len(r) for _, r in rows]
    hits = [np.mean([y == b for y in rewards]) for rewards, b in zip(first, best, strict=True)]
    scores, rewards, valid = table
    assert top_k_hit(scores, rewards, 1, valid) == pytest.approx(np.mean(hits))
    assert figures(*table).regret == pytest.approx(np.mean(best) - np.mean(chosen))
    share = (np.mean(chosen) - np.mean(average)) / (np.mean(best) - np.mean(average))
    assert gain_share(*table) == pytest.approx(share)


def test_a_perfect_scorer() -> None:
    rewards = np.random.default_rng(1).normal(size=(20, 4))
    assert within_prompt_spearman(rewards, rewards).mean == pytest.approx(1)
    assert (top_k_hit(rewards, rewards, 1), figures(rewards, rewards).regret) == (1, 0)
    assert gain_share(rewards, rewards) == 1
    assert gain_share(-rewards, rewards) < 0
    assert within_prompt_spearman(-rewards, rewards).mean == pytest.approx(-1)


def test_a_scorer_that_says_nothing_is_worth_nothing() -> None:
    rewards = np.sort(np.random.default_rng(1).normal(size=(20, 4)))  # the order of the candidates would tell
    silent = np.zeros_like(rewards)
    assert gain_share(silent, rewards) == pytest.approx(0)
    assert top_k_hit(silent, rewards, 1) == 0.25


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_enumerates_every_draw(table: Table, n: int) -> None:
    _, rewards, valid = table
    expected = [
        np.mean([max(draw) for draw in itertools.combinations(r[v], n)])
        for r, v in zip(rewards, valid, strict=True)
        if v.sum() >= n
    ]
    assert np.nanmean(best_of_by_prompt(n, rewards, valid)) == pytest.approx(np.mean(expected))


def test_best_of_many_candidates_stays_exact() -> None:
    rewards = np.arange(200.0)[None]
    for n in (1, 2, 100, 200):  # the best of n from 0 .. m-1 averages n (m + 1) / (n + 1) - 1
        assert best_of_by_prompt(n, rewards).mean() == pytest.approx(n * 201 / (n + 1) - 1)
    with pytest.raises(ValueError, match="n = 0"):
        best_of_by_prompt(0, rewards)


def test_without_any_choice_every_figure_is_undefined() -> None:
    one, none = np.ones((3, 1)), np.zeros((3, 4), dtype=bool)
    for scores, valid in ((one, None), (np.full((3, 4), np.nan), none)):
        assert math.isnan(within_prompt_spearman(scores, scores, valid).mean)
        for metric in (gain_share, pooled_spearman):
            assert math.isnan(metric(scores, scores, valid))
        assert math.isnan(top_k_hit(scores, scores, 1, valid)) and math.isnan(figures(scores, scores, valid).regret)
    assert np.isnan(best_of_by_prompt(2, one)).all() and (best_of_by_prompt(1, one) == 1).all()
    assert math.isnan(gain_share(np.eye(3), np.ones((3, 3))))  # nothing to gain


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_a_valid_entry_that_is_not_finite_and_shapes_that_differ(bad: float) -> None:
    good, poisoned = np.ones((2, 3)), np.array([[1, 2, bad], [1, 2, 3]])
    for scores, rewards in ((good, poisoned), (poisoned, good)):
        with pytest.raises(ValueError, match="mark it invalid"):
            gain_share(scores, rewards)
    with pytest.raises(ValueError, match="same"):
        gain_share(good, good[:, :2])
    with pytest.raises(ValueError, match="same"):
        gain_share(good[0], good[0])


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(3, 2, size=400)
    low, high = bootstrap_interval(np.mean, values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_resamples_whole_prompts_and_all_tables_alike() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(50, 1)) + np.zeros((50, 100))  # 100 equal candidates teach nothing more
    low, high = bootstrap_interval(np.mean, values)
    assert high - low > 3 * values[:, 0].std() / math.sqrt(50)
    assert bootstrap_interval(lambda a, b: float((a - b).mean()), values + 0.5, values) == pytest.approx((0.5, 0.5))


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(4).normal(size=40)
    first = bootstrap_interval(np.mean, values, seed=1)
    assert first == bootstrap_interval(np.mean, values, seed=1)
    assert first != bootstrap_interval(np.mean, values, seed=2)


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    scores, rewards = np.random.default_rng(4).normal(size=(2, 8, 4))
    rewards[1:] = 0  # a resample without the first prompt has nothing to gain
    assert np.isfinite(bootstrap_interval(gain_share, scores, rewards, resamples=200)).all()
    assert np.isnan(bootstrap_interval(gain_share, scores[1:], rewards[1:], resamples=5)).all()
    assert np.isnan(bootstrap_interval(np.mean, [])).all()
    with pytest.raises(ValueError, match="same"):
        bootstrap_interval(gain_share, scores, rewards[:5])


def orders_of(scores: list[float]) -> list[tuple[int, ...]]:
    """Every order of the candidates that respects the scores."""
    every = itertools.permutations(range(len(scores)))
    return [order for order in every if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))]


def test_within_prompt_kendall(table: Table) -> None:
    expected = [
        0.0 if len(set(s)) == 1 else stats.kendalltau(s, r).statistic for s, r in choosing(table) if len(set(r)) > 1
    ]
    result = within_prompt_kendall(*table)
    np.testing.assert_allclose(result.per_prompt, expected, atol=1e-12)
    np.testing.assert_array_equal(result.used, within_prompt_spearman(*table).used)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_top_k_hit_is_the_mean_over_all_orders_of_ties(table: Table, k: int) -> None:
    """Second formula: every order in which the candidates may stand, those that respect the scores."""
    expected = []
    for s, r in choosing(table):
        orders = [
            o for o in itertools.permutations(range(len(s))) if all(s[a] >= s[b] for a, b in itertools.pairwise(o))
        ]
        expected.append(np.mean([max(r[i] for i in order[:k]) == max(r) for order in orders]))
    scores, rewards, valid = table
    assert top_k_hit(scores, rewards, k, valid) == pytest.approx(np.mean(expected))


def test_top_k_needs_a_k(table: Table) -> None:
    with pytest.raises(ValueError, match="k = 0"):
        top_k_hit(table[0], table[1], 0, table[2])


def test_ndcg_is_the_mean_over_all_orders_of_ties(table: Table) -> None:
    expected = []
    for s, r in choosing(table):
        gains = np.array(r) - min(r)
        if not gains.any():
            continue
        discounts = 1 / np.log2(np.arange(len(r)) + 2)
        orders = [
            o for o in itertools.permutations(range(len(s))) if all(s[a] >= s[b] for a, b in itertools.pairwise(o))
        ]
        best = np.sort(gains)[::-1] @ discounts
        expected.append(np.mean([gains[list(order)] @ discounts / best for order in orders]))
    assert ndcg(*table) == pytest.approx(np.mean(expected))
    _, rewards, valid = table
    assert ndcg(rewards, rewards, valid) == pytest.approx(1)


def test_deviations(table: Table) -> None:
    _, rewards, valid = table
    expected = [x - np.mean(r) for _, r in choosing(table) for x in r]
    np.testing.assert_allclose(deviations(rewards, valid), expected, atol=1e-12)
