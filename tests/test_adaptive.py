"""Adaptive plans: replayed as they are run, stopped where a wave does not pay, within the budget; run for real."""

import functools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import run
from test_planning import drawn, noisy_table
from test_select import ARGUMENTS
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.core.errors import UsageError
from probeselect.policies.expecting import Expectation, expectation_of
from probeselect.policies.plan_file import load_plan
from probeselect.policies.plans import AdaptivePlan, RoundPlan
from probeselect.policies.search import Space, earned, search
from probeselect.policies.search_adaptive import DRAWS, ROUNDS_OF, least_gain_for, rounds_allowed, search_adaptive
from probeselect.policies.simulate import Draws, enough_by, paths_of, rows_by_round, stopped
from probeselect.policies.stopping import ExpectedGain, RoundsSoFar
from probeselect.select.sampler import SelectiveSampler

USUAL = Expectation(0.5, 0.8, -2.0, 3.0, -0.5, -0.3, 0.9)  # what champions are like; any will do


def made(n, rounds, k, steps, keep, finish, least_gain, expectation=USUAL, total_steps=20, **more) -> AdaptivePlan:
    return AdaptivePlan(RoundPlan(n, steps, keep, total_steps, k, finish), rounds, least_gain, expectation, **more)


PLANS = [
    made(2, 4, 1, (3, 8), (1, 1), 1, 0.2),
    made(3, 3, 1, (1, 5, 18), (2, 2, 1), 2, 0.1),
    made(4, 5, 2, (2,), (1,), 3, 0.15),
    made(4, 3, 2, (2,), (3,), 2, 0.1),
    made(1, 1, 1, (4,), (1,), 1, 0.0),
]


def by_the_policy(plan: AdaptivePlan, draws: Draws, p: int, d: int) -> tuple[float, int]:
    """One draw of one prompt, walked with the policy and the stopping rule that a live run asks."""
    one = plan.round
    scores = {step: torch.from_numpy(draws.scores(step)[p, d]) for step in one.steps}
    last = scores[one.steps[-1]].tolist()
    waiting: list[int] = []
    champions: list[float] = []
    rows = 0
    for number in range(plan.rounds):
        running = list(range(number * one.n, (number + 1) * one.n))
        done = 0
        for index, step in enumerate(one.steps):
            rows += len(running) * (step + 1 - done)
            done = step + 1
            running = [running[i] for i in one.plan(scores[step][running], index)]
        champions.append(max(last[i] for i in running))
        waiting = sorted(waiting + running, key=lambda i: -last[i])[: one.finish]
        kth = last[waiting[plan.k - 1]] if len(waiting) >= plan.k else -math.inf
        so_far = RoundsSoFar(np.array(champions), np.full(len(champions), kth), None, plan.k)
        if plan.stop.enough(plan.stop.measure(so_far))[-1]:
            break
    rows += len(waiting) * (one.total_steps - done)
    return float(np.mean(sorted(draws.rewards[p, d, waiting])[-plan.k :])), rows


def replayed(plan: AdaptivePlan, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    paths = paths_of(plan.round, draws, plan.rounds)
    return stopped(paths, enough_by(plan.stop, paths), rows_by_round(plan.round, plan.rounds))


@pytest.mark.parametrize("plan", PLANS)
def test_the_replay_is_what_the_policy_does(plan):
    scores, rewards = noisy_table(prompts=6, n=25)
    draws = drawn(scores, rewards, most=plan.n)(5)
    reward, rows = replayed(plan, draws)
    walked = np.array([[by_the_policy(plan, draws, p, d) for d in range(5)] for p in range(6)])  # [P, D, 2]
    np.testing.assert_allclose(reward, walked[:, :, 0].mean(1), atol=1e-6)
    np.testing.assert_allclose(rows, walked[:, :, 1].mean(1))
    assert plan.rounds == 1 or len(set(walked[:, :, 1].ravel())) > 1  # some stop earlier than others


def test_the_expected_gain_is_the_mean_of_what_is_gained():
    """Prompts with one mean and one variance: nothing is to be learnt from their waves, and sampling tells the gain."""
    alike = Expectation(1.0, 1e-12, 1.0, 1.0, math.log(0.49), 0.0, 2.0)
    sampled = 1 + 0.7 * np.random.default_rng(0).standard_normal(400_000)
    for best in (0.2, 1.0, 2.0):
        by_sampling = 2 * np.maximum(sampled - best, 0).mean()
        assert alike.gain([1.0], [best])[0] == pytest.approx(by_sampling, rel=0.02)
        assert alike.gain([1.0], [best], k=2)[0] == pytest.approx(by_sampling / 2, rel=0.02)


def test_a_prompt_is_learnt_from_its_waves():
    """One whose waves come out low is expected to stay low, one whose waves differ may yet find more."""
    low = USUAL.gain([-1.0] * 8, [0.5] * 8)
    assert (np.diff(low) < 0).all() and low[-1] < 0.1 * low[0]
    wide, narrow = (USUAL.gain([-x, x] * 4, [1.5] * 8)[-1] for x in (1.5, 0.1))
    assert wide > 3 * narrow


def test_what_champions_are_like_is_found_again():
    draw = np.random.default_rng(0)
    means = 0.5 + 0.9 * draw.standard_normal((3000, 1))
    champions = means + np.exp(-0.25 - 0.15 * (means - 0.5)) * draw.standard_normal((3000, 40))
    rewards = 0.9 * champions + 5 * draw.standard_normal((3000, 1)) + 0.1 * draw.standard_normal((3000, 40))
    found = expectation_of(champions, rewards)
    assert (found.mean, found.between) == pytest.approx((0.5, 0.81), abs=0.08)
    assert (found.log_within, found.log_within_slope, found.slope) == pytest.approx((-0.5, -0.3, 0.9), abs=0.06)
    alike = expectation_of(np.ones((4, 6)), np.ones((4, 6)))  # nothing differs: nothing is gained
    assert alike.gain([1.0, 1.0], [1.0, 1.0]).tolist() == [0, 0]


@pytest.mark.parametrize("budget", [25.0, 40.0, 63.0])
def test_the_mean_cost_is_the_budget_and_no_more(budget):
    scores, rewards = noisy_table()
    one = RoundPlan(2, (3, 9), (1, 1), 20, 1, 1)
    paths, costs = paths_of(one, drawn(scores, rewards)(20), 15), rows_by_round(one, 15)
    expectation = expectation_of(paths.so_far.champions[:, 0], paths.worth[:, 0])
    gains = ExpectedGain(0, expectation, 15).measure(paths.so_far)
    rows = stopped(paths, gains <= least_gain_for(budget, paths, gains, costs), costs)[1].mean()
    assert budget - 0.5 < rows <= budget
    dear = rows_by_round(one, 15, scoring_cost=0.5)  # three scores a round
    assert stopped(paths, gains <= least_gain_for(budget + 2, paths, gains, dear), dear)[1].mean() <= budget + 2


def easy_and_hard(prompts: int = 80, n: int = 60) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Every other pair of prompts has candidates that are all good, the others wide spread ones."""
    draw = np.random.default_rng(5)
    hard = (np.arange(prompts) // 2 % 2 == 0)[:, None]
    rewards = np.where(hard, draw.standard_normal((prompts, n)), 2 + 0.1 * draw.standard_normal((prompts, n)))
    noise = draw.standard_normal(rewards.shape)
    return {step: rewards + 2 * 0.8**step * noise for step in range(1, 19, 2)}, rewards


def test_it_is_no_worse_than_the_best_fixed_plan():
    """Where prompts leave as much to gain, many are to be compared at once: more than the largest wave of the grid."""
    draw = np.random.default_rng(3)
    rewards = draw.standard_normal((60, 60))
    scores = {step: rewards + 0.6 * 0.8**step * draw.standard_normal(rewards.shape) for step in (0, 1, 4, 9)}
    make = functools.cache(
        lambda count: Draws.at_random(scores, rewards, np.ones(rewards.shape, dtype=bool), 60, count)
    )
    space = Space(tuple(scores), 20, 1, 80, 0.0, 60)
    fixed, found = search(space, make).plan, search_adaptive(space, make)
    assert fixed.n > 2 * max(ROUNDS_OF)
    assert found.planned >= earned(fixed, make(DRAWS[-1])) - 1e-6


def test_it_spends_where_there_is_something_to_gain():
    """Planned on even prompts; on odd ones, for the same rows, it earns more than the best fixed plan."""
    scores, rewards = easy_and_hard()
    valid = np.ones(rewards.shape, dtype=bool)

    def half(start: int) -> Any:
        tables = {step: table[start::2] for step, table in scores.items()}
        return functools.cache(lambda count: Draws.at_random(tables, rewards[start::2], valid[start::2], 60, count))

    space = Space(tuple(scores), 20, 1, 50, 0.0, 60)
    found = search_adaptive(space, half(0))
    assert 49 < found.rows <= 50
    reward, rows = replayed(found.plan, half(1)(100))
    assert rows[1::2].mean() < 30 < 50 < rows[::2].mean()  # of easy prompts, of hard ones
    fixed = search(Space(tuple(scores), 20, 1, max(float(rows.mean()), 50), 0.0, 60), half(0)).plan
    assert fixed.rows >= rows.mean() - 2
    assert reward.mean() > earned(fixed, half(1)(100)) + 0.1


USUAL_PLAN = {"n": 2, "rounds": 4, "k": 1, "steps": (3, 8), "keep": (1, 1), "finish": 1, "least_gain": 0.2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 0}, "k = 0"),
        ({"steps": (3, 3)}, "must increase"),
        ({"steps": (3, 19)}, "step 19 of 20"),
        ({"keep": (1, 2)}, "must fall from n = 2"),
        ({"keep": (3, 1)}, "must fall from n = 2"),
        ({"rounds": 0}, "rounds = 0"),
        ({"least_gain": math.nan}, "nan is no finite number"),
        ({"expectation": replace(USUAL, slope=math.inf)}, "inf is no finite number"),
        ({"expectation": replace(USUAL, between=0.0)}, "between = 0: a variance must be above 0"),
        ({"finish": 0}, "finish = 0: must be from k = 1 to the 4"),
        ({"finish": 5}, "finish = 5: must be from k = 1 to the 4"),
        ({"k": 2, "finish": 1}, "finish = 1: must be from k = 2"),
    ],
)
def test_refuses_what_cannot_be(changes, says):
    with pytest.raises(UsageError, match=says):
        made(**{**USUAL_PLAN, **changes})


def plan_file(path, **changes):
    fields = {
        "format": 1, "kind": "adaptive", "wave": 2, "finish": 1, "least_gain": 0.2, "expectation": vars(USUAL),
        "n": 8, "k": 1, "rungs": [{"step": 3, "keep": 1}, {"step": 8, "keep": 1}], "total_steps": 20,
    }  # fmt: skip
    path.write_text(json.dumps(fields | changes))
    return path


def test_is_read_from_its_file(tmp_path):
    assert load_plan(plan_file(tmp_path / "plan.json")) == PLANS[0]
    for changes, says in [
        ({"n": 7}, "n = 7: must be some rounds of wave = 2"),
        ({"wave": 0}, "n = 8: must be some rounds of wave = 0"),
        ({"wave": "2"}, "wave = '2': must be a whole number or null"),
        ({"finish": None}, "finish: is missing, an adaptive plan needs it"),
        ({"finish": 1.5}, "finish = 1.5: must be a whole number or null"),
        ({"least_gain": True}, "least_gain = true: must be a number or null"),
        ({"expectation": {"mean": 1}}, "expectation: has no field 'between'"),
        ({"expectation": vars(USUAL) | {"low": None}}, "expectation.low = null: must be a number"),
        ({"kind": "clever"}, "kind = 'clever': must be 'adaptive' or 'fixed'"),
    ]:
        with pytest.raises(UsageError, match=says):
            load_plan(plan_file(tmp_path / "bad.json", **changes))


class Says:
    """A scorer that was told its score of every prompt's seeds."""

    name, previews, taps = "told", False, ()

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores, self.asked = scores, []

    def __call__(self, stage):
        self.asked.append((stage.rung, [(c.prompt, c.seed) for c in stage.candidates]))
        return torch.tensor([self.scores[c.prompt][c.seed - 4] for c in stage.candidates])


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


ALIKE = Expectation(0.0, 1e-6, 0.0, 0.0, 0.0, 0.0, 1.0)  # champions are standard normal, whatever was seen


def test_it_is_run_as_it_says(backbone):
    """Another wave adds 0.40 to a best of 0, 0.083 to one of 1, 0.008 to one of 2; 0.05 is asked for.

    Three prompts: one is content at once, one after two rounds, one (most of its scores are no numbers) never.
    """
    nan = math.nan
    scorer = Says({"a": [2, 1, 0, 0, 0, 0], "b": [0, 0.3, 1, 1.5, 9, 9], "c": [nan, nan, nan, -3, nan, nan]})
    plan = made(2, 3, 1, (1, 3), (1, 1), 1, 0.05, ALIKE, 10)
    results = SelectiveSampler(backbone, scorer)(["a", "b", "c"], policy=plan, seed=4, **ARGUMENTS)
    assert [[c.seed for c in r.candidates] for r in results] == [[4, 5], [4, 5, 6, 7], [4, 5, 6, 7, 8, 9]]
    assert [[c.seed for c in r.kept] for r in results] == [[4], [7], [7]]
    assert [rung for rung, _ in scorer.asked] == [0.2, 0.4] * 3
    assert scorer.asked[2][1] == [("b", 6), ("b", 7), ("c", 6), ("c", 7)]  # rounds are shared
    assert [r.cost.denoiser_rows for r in results] == [2 * 2 + 2 + 6, 4 * 2 + 2 * 2 + 6, 6 * 2 + 3 * 2 + 6]
    (only,) = (decision.fields() for decision in results[0].decisions)
    assert only["expected_gain"] == pytest.approx(0.0085, abs=1e-4)  # phi(2) - 2 (1 - Phi(2))
    assert only == {"wave": 1, "seeds": [4, 5], "best": 2.0, "least_gain": 0.05, "decision": "finish"} | only
    assert [d.stops for d in results[1].decisions] == [False, True]
    assert [(d.best, d.value is None) for d in results[2].decisions] == [(None, True)] + [(-3, False)] * 2
    assert results[2].decisions[2].fields()["decision"] == "finish, no more rounds"
    for result in results:
        generator = torch.Generator("cpu").manual_seed(result.kept[0].seed)
        alone = backbone.pipe(result.prompt, generator=generator, **ARGUMENTS).images[0]
        assert torch.allclose(result.images[0], alone, atol=1e-5)
    assert sum(r.cost.denoiser_rows for r in results) == 12 + 18 + 24


def test_steps_are_fractions_and_several_may_be_finished(backbone):
    scorer = Says({"a": [1, 4, 3, 2, 5, 0, 0, 0]})
    plan = made(2, 4, 1, (3,), (2,), 2, 1e-6, ALIKE, 20)  # 20 %: after 2 of 10 steps
    result = SelectiveSampler(backbone, scorer, batch_size=1)("a", policy=plan, seed=4, **ARGUMENTS)
    assert [c.completed_steps for c in result.candidates] == [2, 10, 2, 2, 10, 2]  # 5 is enough, 4 is not
    assert [c.seed for c in result.kept] == [8] and result.cost.denoiser_rows == 6 * 2 + 2 * 8
    assert [c.seed for c in result.candidates if c.image is not None] == [5, 8]

    class Likes5:
        name = "likes 5"

        def features(self, images):
            return torch.tensor([float(image is images[1]) for image in images])[:, None]

        def score(self, features, prompts):
            return features[:, 0]

        def __call__(self, images, prompts):
            return self.score(self.features(images), prompts)

    judged = SelectiveSampler(backbone, scorer)("a", policy=plan, seed=4, evaluators=[Likes5()], **ARGUMENTS)
    assert [c.seed for c in judged.kept] == [5] and judged.images[0] is judged.kept[0].image
    assert {c.seed: c.rewards for c in judged.candidates if c.rewards} == {8: {"likes 5": 0.0}, 5: {"likes 5": 1.0}}
    sampler = SelectiveSampler(backbone, scorer)
    with pytest.raises(UsageError, match="n = 5, k = 1: the plan is made for n = 8"):
        sampler("a", n=5, policy=plan, **ARGUMENTS)
    with pytest.raises(UsageError, match="diversity: is for plans that start all candidates together"):
        sampler("a", policy=plan, diversity=0.5, **ARGUMENTS)


def test_generate_explains_what_was_decided(tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_sd().save_pretrained(folder)
    plan = plan_file(tmp_path / "plan.json", n=6, least_gain=-1)
    arguments = ("--model", str(folder), "--scorer", "random", "--policy", str(plan), "--steps", "10")
    out = run("generate", "a cat", "b dog", *arguments, "--out", str(tmp_path), "--json", capsys=capsys)
    for entry in json.loads(out):
        assert [d["decision"] for d in entry["decisions"]] == ["open another round"] * 2 + ["finish, no more rounds"]
        assert [c["seed"] for c in entry["candidates"]] == [0, 1, 2, 3, 4, 5] and len(entry["kept"]) == 1
        assert entry["rungs"] == [0.2, 0.5] and entry["steps"] == 10 and entry["decisions"][2]["least_gain"] == -1
        assert entry["cost"]["denoiser_rows"] == sum(c["completed_steps"] for c in entry["candidates"])
    assert "round 3, seeds 4 to 5: expected gain" in run(
        "generate", "a cat", *arguments, "--out", str(tmp_path / "b"), capsys=capsys
    )
    error = run(
        "generate", "a", *arguments, "--record", str(tmp_path / "r"), "--out", str(tmp_path), expect=2, capsys=capsys
    )
    assert "record: is for plans that start all candidates together" in error


@pytest.mark.parametrize(("budget", "rounds"), [(40, 7), (20, 0), (60, 11), (1000, 30)])
def test_no_prompt_takes_more_than_four_budgets(budget, rounds):
    """Two candidates to step 10 of 20 and one to the end: 20 rows a round, and 10 more once. 60 are there."""
    one = RoundPlan(2, (9,), (1,), 20, 1, 1)
    assert rounds_allowed(one, Space((9,), 20, 1, budget, 0.0, 60)) == rounds
    assert one.rows(rounds) <= 4 * budget


def test_a_plan_that_was_found_promises_that_too():
    scores, rewards = easy_and_hard(40)
    valid = np.ones(rewards.shape, dtype=bool)
    make = functools.cache(lambda count: Draws.at_random(scores, rewards, valid, 60, count))
    plan = search_adaptive(Space(tuple(scores), 20, 1, 30, 0.0, 60), make).plan
    assert plan.round.rows(plan.rounds) <= 4 * 30 < plan.round.rows(plan.rounds + 1)
