"""The figures that only the report has: calibration, distances, what is kept by whom, seconds."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

from probeselect.core.errors import UsageError
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.evaluation.distances import distances
from probeselect.evaluation.report import report_of
from probeselect.evaluation.tables import by_evaluator, calibration, kept_by, strips
from probeselect.evaluation.timing import read_timing

STEPS = 20


def score_table(name: str = "e", **changes: object) -> ScoreTable:
    draw = np.random.default_rng(0)
    rewards = draw.standard_normal((50, 6))
    scores = {3: rewards + draw.standard_normal(rewards.shape), 9: rewards}
    fields = {"rewards": rewards, "valid": np.ones(rewards.shape, dtype=bool), "scorers": [ScorerScores("s", scores)]}
    return ScoreTable(name, **{**fields, "total_steps": STEPS, **changes})  # type: ignore[arg-type]


def of_scores(scores: np.ndarray, rewards: np.ndarray, valid: np.ndarray | None = None) -> ScoreTable:
    valid = np.ones(rewards.shape, dtype=bool) if valid is None else valid
    return ScoreTable("e", rewards, valid, STEPS, [ScorerScores("s", {3: scores})])


def test_a_calibrated_score_lies_on_the_diagonal():
    draw = np.random.default_rng(0)
    scores = draw.uniform(0, 1, (400, 10))
    table = of_scores(scores, scores + 0.1 * draw.standard_normal(scores.shape))
    found = calibration(table, table.scorers[0])
    np.testing.assert_allclose(found.reward, found.score, atol=0.02)
    np.testing.assert_allclose(np.subtract(found.high, found.low), 2 * 1.2816 * 0.1, atol=0.06)  # the spread in a bin
    assert len(found.score) == 10 and (np.diff(found.score) > 0).all() and found.rung == 0.2


def test_calibration_reads_valid_entries_alone_and_keeps_equal_scores_together():
    scores, rewards = np.array([[0.0, 0.0, 1.0, np.nan]]), np.array([[1.0, 3.0, 5.0, np.inf]])
    table = of_scores(scores, rewards, np.array([[True, True, True, False]]))
    found = calibration(table, table.scorers[0])
    assert found.score == [0, 1] and found.reward == [2, 5]
    table = of_scores(np.zeros((1, 3)), np.array([[1.0, 2.0, 3.0]]))
    flat = calibration(table, table.scorers[0])
    assert flat.score == [0] and flat.reward == [2]


def test_distances_by_a_second_formula():
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((80, 4)), 0.5 + 1.5 * draw.standard_normal((60, 4))
    found = fid_found, kid_found = distances(torch.from_numpy(b), torch.from_numpy(a))
    (m, s), (n, t) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    fid = ((m - n) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert fid_found == pytest.approx(fid, rel=1e-4)

    def kernel(x, y):
        return (x @ y.T / 4 + 1) ** 3

    def unbiased(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    kid = unbiased(kernel(a, a)) + unbiased(kernel(b, b)) - 2 * kernel(a, b).mean()
    assert kid_found == pytest.approx(kid, rel=0.2)  # the mean over random subsets
    assert found == distances(torch.from_numpy(b), torch.from_numpy(a))
    with pytest.raises(UsageError, match="needs two of each"):
        distances(torch.ones(1, 4), torch.ones(9, 4))


def test_what_is_kept_is_judged_by_everybody():
    one = score_table()
    other = score_table("other", rewards=-one.rewards, scorers=[])
    rows = {(row.kept_by, row.evaluator): row for row in kept_by([one, other])}
    chosen = one.rewards[np.arange(50), one.scorers[0].scores[3].argmax(1)]
    mine = rows["s at 20%", "e"]
    assert mine.kept == pytest.approx(chosen.mean()) and mine.all == pytest.approx(one.rewards.mean())
    assert mine.difference_interval[0] < mine.difference < mine.difference_interval[1]
    assert rows["s at 20%", "other"].difference == pytest.approx(-mine.difference)
    assert rows["best of all by other", "other"].kept == pytest.approx(-one.rewards.min(1).mean())
    table = list(by_evaluator([one, other]))
    assert [(row.evaluator, row.rung) for row in table] == [("e", 0.2), ("e", 0.5)]
    assert table[1].spearman == pytest.approx(1)


def test_strips_show_prompts_from_the_worst_to_the_best():
    shown = strips(score_table(prompts=[f"p{i}" for i in range(50)]), 5)
    means = [np.mean(strip.rewards) for strip in shown]
    assert len(shown) == 5 and means == sorted(means) and {strip.prompt[0] for strip in shown} == {"p"}
    case = score_table()
    assert shown[0].prompt == f"p{case.rewards.mean(1).argmin()}"
    best = case.rewards.mean(1).argmax()
    assert shown[-1].chosen["s"] == case.rewards[best, case.scorers[0].scores[3][best].argmax()]


def result(scorer: str, rows: int, scored: int, seconds: float, scoring: float) -> dict:
    scores = [{"scores": [{"rung": 0.2}]} for _ in range(scored)]
    cost = {"denoiser_rows": rows, "seconds": seconds, "seconds_scoring": scoring}
    return {"scorer": scorer, "candidates": scores, "cost": cost}


def test_seconds_come_from_runs(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(result("s", 36, 5, 4.1, 0.5)))
    (tmp_path / "b.json").write_text(json.dumps([result("t", 36, 5, 4.6, 1.0), result("t", 28, 5, 3.8, 1.0)]))
    timing = read_timing([tmp_path / "a.json", tmp_path / "b.json"])
    assert timing.row == pytest.approx(0.1) and timing.score == pytest.approx({"s": 0.1, "t": 0.2})
    assert timing.seconds("t", 100, 5) == pytest.approx(11) and timing.seconds("u", 1, 1) is None
    rows = report_of(score_table(), timing=timing).compute
    cut = next(row for row in rows if row.scorer == "s" and row.schedule == "5 -> 1 at 20%")
    assert cut.seconds == pytest.approx(36 * 0.1 + 5 * 0.1)
    best = next(row for row in rows if row.schedule == "best of 2")
    assert best.seconds == pytest.approx(4) and report_of(score_table()).compute[0].seconds is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cost": 3}', '[{"scorer": "s", "candidates": []}]'])
def test_files_that_are_no_results_are_named(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"result\.json: "):
        read_timing([path])
