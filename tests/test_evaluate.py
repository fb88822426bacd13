"""Evaluation: known truths come out, planted faults are named, intervals cover."""

import json

import numpy as np
import pytest

from probeselect.core.errors import UsageError
from probeselect.core.metrics import best_of_by_prompt, bootstrap_interval, choices, gain_share, within_prompt_spearman
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.evaluation.report import faults, report_of
from probeselect.policies.simulate import best_of_rows

STEPS = 20


def score_table(
    noise: float = 1.0, prompts: int = 120, n: int = 8, level: float = 3.0, **changes: object
) -> ScoreTable:
    """Rewards with a level of their own for every prompt, and a scorer that sees them with noise at steps 3 and 9."""
    draw = np.random.default_rng(0)
    rewards = draw.standard_normal((prompts, n)) + level * draw.standard_normal((prompts, 1))
    scores = {step: rewards + noise / (step + 1) * 4 * draw.standard_normal(rewards.shape) for step in (3, 4, 9)}
    fields = {
        "rewards": rewards,
        "valid": np.ones(rewards.shape, dtype=bool),
        "scorers": [ScorerScores("seer", scores)],
    }
    return ScoreTable("e", **{**fields, "total_steps": STEPS, **changes})  # type: ignore[arg-type]


def found(report, scorer, schedule):
    return next(row for row in report.compute if (row.scorer, row.schedule) == (scorer, schedule))


def test_the_figures_are_those_of_the_metrics():
    case = score_table()
    report = report_of(case)
    row = next(row for row in report.choosing if row.step == 3)
    table = case.scorers[0].scores[3]
    assert row.spearman == within_prompt_spearman(table, case.rewards).mean and row.rung == 0.2
    assert row.gain_share == pytest.approx(gain_share(table, case.rewards))
    low, high = row.gain_share_interval
    assert [low, high] == pytest.approx(bootstrap_interval(gain_share, table, case.rewards))
    assert row.top1 <= row.top2 <= 1 and row.constant_prompts == 0
    assert report.rewards.pooled_of_a_constant > 0.9  # worth nothing, and looks like much
    assert json.loads(report.to_json())["faults"] == []


def test_two_scorers_are_compared_prompt_by_prompt():
    """The same noise, halved: better in nearly every prompt, so the interval of the difference is far from zero."""
    case = score_table()
    seen = case.scorers[0].scores[3]
    better = ScorerScores("better", {3: (seen + case.rewards) / 2, 4: case.rewards})
    report = report_of(score_table(scorers=[better, case.scorers[0]]))
    row = report.paired[0]
    found = [within_prompt_spearman(t, case.rewards).mean for t in (better.scores[3], seen)]
    assert (row.scorer, row.over, row.rung) == ("better", "seer", 0.2)
    assert row.spearman == pytest.approx(found[0] - found[1]) and row.spearman_interval[0] > 0
    assert row.reward_interval[0] > 0 and [r.rung for r in report.paired] == [0.2, 0.25]


def test_costs_and_earnings_at_the_ends_of_the_scale():
    case = score_table()
    report = report_of(case)
    mean, best = case.rewards.mean(), best_of_by_prompt(5, case.rewards).mean()
    assert found(report, "cut at random", "5 -> 1 at 20%").reward == pytest.approx(mean)
    oracle = found(report, "oracle", "5 -> 1 at 20%")
    assert (oracle.reward, oracle.rows) == (pytest.approx(best), 36)
    assert found(report, "best of n", "best of 5").reward == pytest.approx(best)
    seer = found(report, "seer", "5 -> 1 at 20%")
    assert mean < seer.reward < best and seer.rows == 36
    assert found(report, "seer", "8 -> 4 -> 2 at 25%, 50%").rows == 80
    for row in report.compute:
        if row.scorer == "best of n":
            assert row.lead == pytest.approx(0, abs=1e-12)


def test_best_of_n_between_two_whole_numbers():
    case = score_table()
    two, three = (best_of_by_prompt(n, case.rewards) for n in (2, 3))
    np.testing.assert_allclose(best_of_rows(2.25 * STEPS, STEPS, case.rewards, case.valid), 0.75 * two + 0.25 * three)
    assert np.isnan(best_of_rows(STEPS - 1, STEPS, case.rewards, case.valid)).all()
    assert np.isnan(best_of_rows(9 * STEPS, STEPS, case.rewards, case.valid)).all()  # there are 8


def test_pairing_that_is_shifted_is_named():
    case = score_table(0.3)
    for move, words in ((1, "1 place earlier"), (-1, "1 place later"), (2, "2 places earlier")):
        shifted = {step: np.roll(table, move, 1) for step, table in case.scorers[0].scores.items()}
        (fault,) = faults(score_table(scorers=[ScorerScores("seer", shifted)]))
        assert words in fault and "pairing is off" in fault


def test_scorers_of_prompts_and_not_of_seeds_are_named():
    case = score_table()
    constant = np.repeat(case.rewards.mean(1, keepdims=True), 8, 1)
    (fault,) = faults(score_table(scorers=[ScorerScores("flat", {3: constant})]))
    assert "constant within every prompt" in fault
    nearly = constant + 1e-3 * np.random.default_rng(1).standard_normal(constant.shape)
    (fault,) = faults(score_table(scorers=[ScorerScores("nearly", {3: nearly})], level=3.0))
    assert "tells prompts apart and not seeds" in fault


def test_nothing_is_named_where_nothing_is_wrong():
    """Neither for a weak scorer, nor for one that is blind and does not look good."""
    blind = np.random.default_rng(2).standard_normal((120, 8))
    assert (
        list(faults(score_table(4.0))) == list(faults(score_table(scorers=[ScorerScores("blind", {3: blind})]))) == []
    )


def test_what_is_not_valid_is_never_read():
    valid = np.random.default_rng(3).random((120, 8)) < 0.8
    clean = score_table(valid=valid)
    spoilt = score_table(
        valid=valid,
        rewards=np.where(valid, clean.rewards, np.nan),
        scorers=[ScorerScores("seer", {s: np.where(valid, t, np.inf) for s, t in clean.scorers[0].scores.items()})],
    )
    assert report_of(clean).to_json() == report_of(spoilt).to_json()


def test_nothing_to_choose_is_refused():
    with pytest.raises(UsageError, match="nothing to choose"):
        score_table(valid=np.eye(120, 8, dtype=bool))


@pytest.mark.parametrize("figure", ["spearman", "gain share"])
def test_intervals_cover_the_truth(figure):
    """Of 300 small experiments with a known truth, 95 % intervals hold it at least 90 % of the time."""
    draw = np.random.default_rng(0)

    def experiment(prompts):
        rewards = draw.standard_normal((prompts, 5))
        return rewards + 1.5 * draw.standard_normal((prompts, 5)), rewards

    def share(chosen, best, average):
        return (chosen - average).sum() / (best - average).sum()

    scores, rewards = experiment(200_000 if figure == "gain share" else 20_000)
    truth = gain_share(scores, rewards) if figure == "gain share" else within_prompt_spearman(scores, rewards).mean
    held = 0
    for _ in range(300):
        scores, rewards = experiment(80)
        if figure == "spearman":
            low, high = bootstrap_interval(np.mean, within_prompt_spearman(scores, rewards).per_prompt, resamples=400)
        else:
            c = choices(scores, rewards)
            low, high = bootstrap_interval(share, c.chosen, c.best, c.average, resamples=400)
        held += low <= truth <= high
    assert held >= 0.9 * 300
