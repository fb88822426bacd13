"""The search of schedules on tables whose best schedule is known, and `plan` on the command line."""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from collected import Redness, collected, maker_of
from test_cli import run
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.core.errors import UsageError
from probeselect.core.metrics import best_of_by_prompt
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.evaluation.timing import read_timing
from probeselect.policies.plan_file import load_plan
from probeselect.policies.planner import Planner, halves, plan_for
from probeselect.policies.plans import AdaptivePlan, FixedPlan
from probeselect.policies.search import Space, earned, most_candidates, search, search_at_random
from probeselect.policies.simulate import Draws, best_of_rows, replay


def rewards_of(prompts: int = 40, n: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((prompts, n))


def noise_like(rewards: np.ndarray, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(rewards.shape)


def drawn(scores, rewards, valid=None, most=None):
    valid = np.ones(rewards.shape, dtype=bool) if valid is None else valid
    return functools.cache(lambda count: Draws.at_random(scores, rewards, valid, most or most_candidates(valid), count))


def test_a_perfect_early_scorer_opens_all_it_can_and_cuts_at_once():
    rewards = rewards_of()
    scores = {0: rewards, 5: rewards, 9: rewards}
    found = search(Space((0, 5, 9), 20, 1, 40, 0.0, 30), drawn(scores, rewards))
    assert (found.plan.n, found.plan.steps, found.plan.keep) == (21, (0,), (1,)) and found.plan.rows == 40


def test_a_blind_scorer_leaves_best_of_n():
    rewards = rewards_of()
    scores = {step: noise_like(rewards, step) for step in (1, 5, 9)}
    found = search(Space((1, 5, 9), 20, 1, 60, 0.0, 30), drawn(scores, rewards))
    assert found.plan.n == found.plan.keep[-1] == 3 and found.plan.rows == 60
    worth = replay(found.plan, scores, rewards, draws=3000).mean()
    assert worth == pytest.approx(best_of_by_prompt(3, rewards).mean(), abs=0.02)


def test_the_search_finds_what_trying_everything_finds():
    """Every schedule of five candidates, by the exact replay: the search's is as good as the best."""
    rewards = rewards_of(8, 5)
    scores = {0: rewards + 4 * noise_like(rewards), 1: rewards + 0.2 * noise_like(rewards, 2), 3: rewards}
    best, budget, total = -math.inf, 10, 6
    for count in (1, 2, 3):
        for steps in itertools.combinations(sorted(scores), count):
            for keep in itertools.combinations_with_replacement(range(5, 0, -1), count):
                for n in range(keep[0], 6):
                    plan = FixedPlan(n, 1, steps, keep, total)
                    if plan.rows <= budget:
                        best = max(best, replay(plan, scores, rewards).mean())
    found = search(Space((0, 1, 3), total, 1, budget, 0.0, 5), drawn(scores, rewards))
    assert replay(found.plan, scores, rewards).mean() == pytest.approx(best, abs=1e-6)


def noisy_table(total=20, prompts=60, n=40):
    rewards = rewards_of(prompts, n)
    noise = noise_like(rewards)
    return {step: rewards + 4 * 0.8**step * noise for step in range(total - 1)}, rewards


@pytest.mark.parametrize("scoring_cost", [0.0, 0.5])
@pytest.mark.parametrize("budget", [20, 37.5, 80])
def test_the_budget_holds_and_one_candidate_more_would_break_it(budget, scoring_cost):
    scores, rewards = noisy_table()
    space = Space(tuple(scores), 20, 1, budget + scoring_cost, scoring_cost, 40)
    for found in (search(space, make := drawn(scores, rewards)), search_at_random(space, make, 200)):
        plan = found.plan
        walked, running = 0.0, plan.n
        for step in range(20):
            walked += running
            if step in plan.steps:
                walked += scoring_cost * running
                running = plan.keep[plan.steps.index(step)]
        assert walked == pytest.approx(plan.rows + scoring_cost * plan.scored) and walked <= space.budget
        assert walked + (plan.steps[0] + 1) + scoring_cost > space.budget


def test_the_search_is_the_same_again_and_no_worse_than_chance():
    scores, rewards = noisy_table()
    space = Space(tuple(scores), 20, 1, 60, 0.0, 40)
    found = search(space, make := drawn(scores, rewards))
    assert found == search(space, drawn(scores, rewards))
    by_chance = search_at_random(space, make, found.tried)
    assert by_chance.tried == found.tried and found.planned > by_chance.planned - 0.005
    assert found.planned > best_of_by_prompt(3, rewards).mean() + 0.2


def test_many_draws_come_to_the_replay():
    scores, rewards = noisy_table(prompts=20, n=12)
    plan = FixedPlan(6, 2, (2, 7), (4, 3), 20)
    assert earned(plan, drawn(scores, rewards)(2000)) == pytest.approx(
        replay(plan, scores, rewards, draws=2000).mean(), abs=0.02
    )


def test_what_is_not_valid_is_never_drawn():
    rewards = rewards_of(20, 10)
    valid = np.random.default_rng(3).random(rewards.shape) < 0.8
    spoilt = np.where(valid, rewards, np.nan)
    most = most_candidates(valid)
    draws = Draws.at_random({1: spoilt}, spoilt, valid, most, 50)
    assert np.isfinite(draws.rewards).all() and np.isfinite(draws.scores(1)).all()
    assert 0.9 * len(rewards) <= len(draws.prompts) == (valid.sum(1) >= most).sum()


def test_best_of_rows_by_every_draw():
    rewards = rewards_of(5, 7)
    valid = np.ones(rewards.shape, dtype=bool)
    valid[0, 3:] = False
    by_hand = [
        np.mean([np.mean(sorted(d)[-2:]) for d in itertools.combinations(rewards[p, valid[p]], 4)]) for p in range(1, 5)
    ]
    found = best_of_rows(40, 10, rewards, valid, k=2)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], by_hand)
    low, high = (best_of_rows(rows, 10, rewards, valid, k=2) for rows in (40, 50))
    np.testing.assert_allclose(best_of_rows(42.5, 10, rewards, valid, k=2)[1:], (0.75 * low + 0.25 * high)[1:])
    assert np.isnan(best_of_rows(9, 10, rewards, valid)).all()


def score_table(prompts=60, n=40) -> ScoreTable:
    scores, rewards = noisy_table(prompts=prompts, n=n)
    return ScoreTable("taste", rewards, np.ones(rewards.shape, dtype=bool), 20, [ScorerScores("seer", scores)])


def planner_of(case: ScoreTable, **options) -> Planner:
    return Planner(case, case.scorers[0], *halves(len(case.rewards)), **options)


def test_the_report_is_of_prompts_that_were_not_planned_on():
    """Rewards of the planning prompts are raised by ten: none of it is in what is promised."""
    case = score_table()
    raised = case.rewards + np.where(np.arange(60) % 2 == 0, 10, 0)[:, None]
    plan = plan_for(planner_of(ScoreTable("taste", raised, case.valid, 20, case.scorers)), 60)
    assert plan.planned > 10 > 3 > plan.expected and plan.prompts == {"planning": 30, "report": 30}
    low, high = plan.interval
    assert low < plan.expected < high
    assert plan.baselines["best of n at equal cost"].lead_interval[0] > 0
    cut = plan.baselines["the paper's cut"]
    assert cut.schedule == "5 -> 1 at 20%" and cut.rows == 36
    assert cut.lead == pytest.approx(plan.expected - cut.expected, abs=1e-5)
    assert plan.baselines["8 -> 4 -> 2"].rows == 80


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_more_candidates_than_the_table_has_are_not_promised(adaptive, k):
    plan = plan_for(planner_of(score_table(n=5), k=k), 5000, adaptive)
    assert plan.n <= 5 and plan.budget == 100 and plan.cost <= 100 and plan.k == k
    assert "5 candidates a prompt take no more than 100 rows" in plan.notes[0]


def table_file(path, scores=None, steps=None):
    if scores is None:
        table, rewards = noisy_table(total=10, prompts=12, n=8)
        scores = np.stack([*table.values(), rewards])
    np.savez(path, score=scores, steps=np.arange(len(scores)) if steps is None else steps)
    return str(path)


@pytest.mark.parametrize("kind", [FixedPlan, AdaptivePlan])
def test_plan_writes_what_generate_reads(kind, tmp_path, capsys):
    out = tmp_path / "new" / "plan.json"
    options = ["--budget", "25", "--out", str(out), *(["--adaptive"] if kind is AdaptivePlan else [])]
    fields = json.loads(run("plan", table_file(tmp_path / "t.npz"), *options, "--json", capsys=capsys))
    assert fields == json.loads(out.read_text()) and fields.get("kind", "fixed") == kind.__name__[:-4].lower()
    plan = load_plan(out)
    assert isinstance(plan, kind) and (plan.n, plan.k, plan.total_steps) == (fields["n"], 1, 10)
    assert {"format", "rungs", "rows", "expected", "interval", "baselines"} <= set(fields) and fields[
        "evaluator"
    ] == "t"
    assert not list(out.parent.glob("*.partial"))
    told = run("plan", table_file(tmp_path / "t.npz"), *options, capsys=capsys)
    assert "best of n at equal cost" in told and "6 held-out prompts" in told
    first = out.read_bytes()
    run("plan", table_file(tmp_path / "t.npz"), *options, capsys=capsys)
    assert out.read_bytes() == first


def result_file(path, scorer="probes/mine", rows=100, seconds=6.0, scoring=1.0):
    """A run of generate: 20 scores, and so many seconds of which so many for scoring."""
    cost = {"denoiser_rows": rows, "seconds": seconds, "seconds_scoring": scoring}
    path.write_text(json.dumps({"scorer": scorer, "cost": cost, "candidates": [{"scores": [0.5] * 4}] * 5}))
    return str(path)


def test_scoring_is_paid_for_as_it_was_timed(tmp_path, capsys):
    """A row takes 50 ms and a score 50 ms, so a score is worth a row."""
    given = ("plan", table_file(tmp_path / "t.npz"), "--budget", "25", "--out", str(tmp_path / "p.json"))
    timing = ("--timing", result_file(tmp_path / "result.json"))
    fields = json.loads(run(*given, *timing, "--json", capsys=capsys))
    assert fields["scoring_cost"] == pytest.approx(1) and fields["rows"] < fields["cost"] <= 25
    assert fields["seconds"] == pytest.approx(fields["cost"] * 0.05)
    said = run(*given, "--scoring-cost", "1", "--json", capsys=capsys)
    assert json.loads(said)["rungs"] == fields["rungs"] and "seconds" not in json.loads(said)
    assert f"{fields['cost']:.1f} rows ({fields['seconds']:.2f} s)" in run(*given, *timing, capsys=capsys)
    other = result_file(tmp_path / "other.json", "random")
    assert "a score table is of one" in run(*given, *timing, "--timing", other, expect=2, capsys=capsys)
    assert "none.json: there is no such file" in run(*given, "--timing", "none.json", expect=2, capsys=capsys)


def test_who_was_timed(tmp_path):
    """A probe is called by its folder's name, wherever that lies; `evaluate` finds its seconds by it as well."""
    timing = read_timing([Path(result_file(tmp_path / "result.json", "fusion:some/where/mine", scoring=2.0))])
    assert timing.score == {"fusion:mine": pytest.approx(0.1)} and timing.row == pytest.approx(0.04)
    assert timing.seconds("fusion:mine", 10, 2) == pytest.approx(0.6)
    assert timing.scoring_cost("fusion:mine") == pytest.approx(2.5)
    with pytest.raises(UsageError, match="no run of scorer mine was timed, but of fusion:mine"):
        timing.scoring_cost("mine")


NOTHING = np.full((4, 6, 5), np.nan)
BAD = {
    "no budget": (None, ["--budget", "9"], "budget 9: less than the 10 rows of 1 finished picture of 10 steps"),
    "less than none": (None, ["--budget", "-1"], "budget -1: less than"),
    "no number": (None, ["--budget", "nan"], "budget nan: less than"),
    "no row for scoring": (None, ["--budget", "10", "--scoring-cost", "1"], "less than the 11 rows of 1 finished"),
    "two pictures": (None, ["--budget", "19", "-k", "2"], "less than the 20 rows of 2 finished pictures"),
    "k of none": (None, ["--budget", "40", "-k", "0"], "k = 0: must be from 1 to the 8"),
    "k above n": (None, ["--budget", "400", "-k", "9"], "k = 9: must be from 1 to the 8 candidates"),
    "scoring that pays": (None, ["--budget", "40", "--scoring-cost", "-1"], "scoring cost -1: must be"),
    "NaN everywhere": (NOTHING, ["--budget", "40"], "no prompt has two different candidates"),
    "one candidate": (np.zeros((4, 6, 1)), ["--budget", "40"], "no prompt has two different candidates"),
    "one prompt": (rewards_of(4, 5)[:, None], ["--budget", "40"], "1 prompts: none with two candidates"),
    "two axes": (np.zeros((4, 6)), ["--budget", "40"], "score is (4, 6), must be"),
    "a probe": (None, ["--budget", "40", "--probe", "embedded"], "--probe, --scorer and --evaluator: need a dataset"),
    "no budget said": (None, [], "--budget"),
    "a folder": (None, ["--budget", "40", "--out", "."], "--out .: is a folder"),
}


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_use_is_one_line(case, adaptive, tmp_path, capsys):
    scores, options, said = BAD[case]
    path = table_file(tmp_path / "t.npz", scores)
    flags = ["--adaptive"] if adaptive else []
    error = run("plan", path, "--out", str(tmp_path / "plan.json"), *options, *flags, expect=2, capsys=capsys)
    assert said in error and error.count("\n") == 1 and not (tmp_path / "plan.json").exists()


def test_a_file_that_is_not_there(tmp_path, capsys):
    error = run("plan", str(tmp_path / "none.npz"), "--budget", "40", expect=2, capsys=capsys)
    assert "none.npz: there is no such file" in error


def test_a_dataset_is_planned_by_the_scorer_that_is_named(tmp_path, capsys):
    texts = ["a red cat", "b dog", "c", "d"]
    maker = maker_of(load_backbone(tiny_sd()), previews=True)
    folder, out = str(collected(maker, texts, tmp_path / "data", [Redness()]).folder), tmp_path / "plan.json"
    given = ("plan", folder, "--budget", "8", "--out", str(out), "--json")
    fields = json.loads(run(*given, capsys=capsys))
    assert (fields["scorer"], fields["evaluator"], fields["total_steps"]) == ("preview:redness", "redness", 5)
    assert fields["prompts"] == {"planning": 2, "report": 2} and fields["cost"] <= 8
    assert json.loads(run(*given, "--scorer", "random", capsys=capsys))["scorer"] == "random"
    error = run(*given, "--scorer", "taste", expect=2, capsys=capsys)
    assert "scorer 'taste': there are the scores of preview:redness, random" in error
    assert "evaluator 'taste': name one" in run(*given, "--evaluator", "taste", expect=2, capsys=capsys)
    assert "--rewards: is for score tables" in run(*given, "--rewards", "x.npz", expect=2, capsys=capsys)


def test_report_prompts_without_the_candidates_are_named(tmp_path, capsys):
    table, rewards = noisy_table(total=10, prompts=12, n=8)
    scores = np.stack([*table.values(), rewards])
    scores[:, 1::2, 2:] = np.nan
    path = table_file(tmp_path / "t.npz", scores)
    for flags in ([], ["--adaptive"]):
        error = run("plan", path, "--budget", "60", "--out", str(tmp_path / "p.json"), *flags, expect=2, capsys=capsys)
        assert "no prompt of those to report on has the" in error and error.count("\n") == 1
