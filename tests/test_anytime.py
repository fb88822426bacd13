"""Anytime: more candidates until a picture is good enough, by the evaluator or by how likely it is."""

import json
import math

import numpy as np
import pytest
import torch
from test_adaptive import ALIKE, Says, made, plan_file
from test_cli import run
from test_select import ARGUMENTS
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.collect.recorder import Recorder
from probeselect.core.errors import UsageError
from probeselect.policies.chances import BINS, Chances, chances_of
from probeselect.policies.plan_file import load_plan
from probeselect.policies.stopping import Until, UntilLikely
from probeselect.select.sampler import SelectiveSampler


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


class Told:
    """An evaluator that was told its rewards of pictures, in the order in which it sees them."""

    name = "told"

    def __init__(self, *rewards: float) -> None:
        self.rewards = list(rewards)

    def features(self, images):
        return torch.tensor([[self.rewards.pop(0)] for _ in images])

    def score(self, features, prompts):
        return features[:, 0]


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_chances_are_the_shares_that_reach_it(noise):
    """Against the normal formula: rewards are the scores and noise."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=60_000)
    chances = chances_of(scores, scores + noise * rng.normal(size=scores.shape))
    assert len(chances.scores) == BINS
    for b in (2, 6, 9):
        inside = np.sort(scores)[b * len(scores) // BINS : (b + 1) * len(scores) // BINS]
        for reward in (-1.0, 0.2, 1.1):
            below = [0.5 * (1 + math.erf((reward - x) / noise / math.sqrt(2))) for x in inside[::50]]
            assert chances.of(chances.scores[b], reward) == pytest.approx(1 - np.mean(below), abs=0.03)


def test_chances_at_their_ends():
    chances = Chances((0.0, 1.0), ((0.0, 0.5, 0.5, 1.0), (1.0, 2.0, 3.0, 4.0)))
    assert chances.of(-5, 0.5) == pytest.approx(1 - 1 / 3) and chances.of(0, 0.5001) < 1 / 3 + 1e-3
    assert chances.of(0, 0.0) == 1 and chances.of(0, 1.001) == 0 and chances.of(9, 4.0) == pytest.approx(0)
    assert chances.of(0.5, 1.0) == pytest.approx(0.5)  # between bins: between their chances
    one = chances_of([2.0], [3.0])
    assert one.of(0, 3.0) == 1 and one.of(0, 3.1) == 0
    falling = chances_of(np.arange(100), -np.arange(100))  # a better score never gets a lesser chance
    assert all(falling.of(s, -50) <= falling.of(s + 1, -50) for s in range(99))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Until(math.nan), "until = nan: must be a finite reward"),
        (lambda: UntilLikely(1, 0.0), "confidence = 0: must be between 0 and 1"),
        (lambda: UntilLikely(1, 1.0), "confidence = 1: must be between 0 and 1"),
        (lambda: Until(1, rounds=0), "rounds = 0: must be at least 1"),
        (lambda: Chances((0.0,), ((1.0, 0.0),)), "must rise"),
        (lambda: Chances((1.0, 0.0), ((0.0, 1.0), (0.0, 1.0))), "must rise"),
        (lambda: Chances((1.0,), ((0.0, math.inf),)), "finite numbers"),
        (lambda: Chances((1.0, 2.0), ((0.0, 1.0),)), "a score and two or more quantiles"),
    ],
)
def test_what_cannot_be_is_refused(made, says):
    with pytest.raises(UsageError, match=says):
        made()


def test_a_prompt_gets_more_until_it_is_good_enough(backbone):
    """Three prompts: good enough at once, after two waves, never. Pictures are judged when they are finished."""
    scorer = Says({p: [0, 1, 0, 1, 1, 0, 1, 0] for p in "abc"})
    judge = Told(0.9, 0.2, 0.3, 0.8, 0.1, 0.25)  # wave 1: a, b, c; wave 2: b, c; wave 3: c
    bars = []
    results = SelectiveSampler(backbone, scorer)(
        ["a", "b", "c"], n=2, seed=4, stop=Until(0.8, rounds=3), evaluators=[judge],
        progress=lambda done, planned: bars.append((done, planned)), **ARGUMENTS,
    )  # fmt: skip
    assert not judge.rewards
    assert [[c.seed for c in r.candidates] for r in results] == [[4, 5], [4, 5, 6, 7], [4, 5, 6, 7, 8, 9]]
    assert [[c.seed for c in r.kept] for r in results] == [[5], [7], [5]]  # c: 0.3, 0.1, 0.25
    assert [[c.seed for c in r.candidates if c.kept] for r in results] == [[5], [7], [5]]
    assert [r.cost.denoiser_rows for r in results] == [12, 24, 36]
    assert [r.cost.denoiser_rows_all for r in results] == [20, 40, 60]
    assert [decision.fields() for decision in results[1].decisions] == [
        {"wave": 1, "seeds": [4, 5], "best": 1.0, "reward": 0.2, "until": 0.8, "decision": "open another round"},
        {"wave": 2, "seeds": [6, 7], "best": 1.0, "reward": 0.8, "until": 0.8, "decision": "finish"},
    ]
    last = results[2].decisions[-1]
    assert last.stops and last.last and not last.enough and last.value == pytest.approx(0.3)
    assert last.in_words() == "reward 0.300 is below the threshold 0.800, and this was the last round"
    assert max(done for done, _ in bars) == 72 and all(done <= planned for done, planned in bars)
    assert [done for done, _ in bars] == sorted(done for done, _ in bars)
    generator = torch.Generator("cpu").manual_seed(7)
    alone = backbone.pipe("b", generator=generator, **ARGUMENTS).images[0]
    assert torch.allclose(results[1].images[0], alone, atol=1e-5)


def test_all_that_are_kept_must_be_good_enough(backbone):
    judge = Told(0.9, 0.1, 0.85, math.nan)
    sampler = SelectiveSampler(backbone, Says({"a": [0, 1, 2, 2, 1, 0]}))
    (result,) = sampler(["a"], n=3, k=2, seed=4, stop=Until(0.8), evaluators=[judge], **ARGUMENTS)
    assert [c.seed for c in result.kept] == [6, 7] and [d.value for d in result.decisions] == [0.1, 0.85]


def test_whole_pictures_one_by_one(backbone):
    result = SelectiveSampler(backbone, "random")(
        "a", n=1, rungs=(), policy="all", stop=Until(0.5, rounds=9), evaluators=[Told(0.1, 0.2, 0.7)], **ARGUMENTS
    )
    assert [c.seed for c in result.kept] == [2] and result.cost.denoiser_rows == 30


def test_what_it_opens_is_recorded_wave_by_wave(backbone, tmp_path):
    from test_recording import SETTINGS

    record = Recorder(tmp_path, backbone, backbone.taps, SETTINGS, ARGUMENTS | {"output_type": "pil"}, share=0.5)
    given = {**ARGUMENTS, "output_type": "pil", "n": 4, "rungs": (0.2, 0.4), "stop": Until(1.0, rounds=2)}
    SelectiveSampler(backbone, "random")(["a", "b"], evaluators=[Told(2, 0, 0)], record=record, **given)
    assert len(record.shards) == 3 and not record.maps  # a, b, and b again with the next seeds


CHANCES = Chances((0.0, 2.0), ((0.0, 1.0), (1.0, 2.0)))  # of reaching 1: half the score
WAVY = made(2, 3, 1, (1,), (1,), 1, 0.05, ALIKE, 10, chances=CHANCES)


def test_likely_enough_is_enough(backbone):
    scorer = Says({"a": [1.5, 1, 0, 0, 0, 0], "b": [0, 0.3, 1, 1.8, 9, 9], "c": [0, math.nan, 1, 1, 0, 1]})
    results = SelectiveSampler(backbone, scorer)(
        ["a", "b", "c"], policy=WAVY, seed=4, stop=UntilLikely(1.0, confidence=0.7), **ARGUMENTS
    )
    assert [len(r.candidates) for r in results] == [2, 4, 6]
    assert [[d.value for d in r.decisions] for r in results] == [[0.75], [0.15, 0.9], [0, 0.5, 0.5]]
    assert [r.decisions[-1].enough for r in results] == [True, True, False]
    assert [[c.seed for c in r.kept] for r in results] == [[4], [7], [6]]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stop": Until(0.5)}, "until = 0.5: needs an evaluator"),
        ({"stop": UntilLikely(0.5, 0.5)}, "confidence: needs a plan of `plan --adaptive`"),
        ({"stop": Until(0.5), "evaluators": [Told()], "seed": 2**63 - 9}, "seed 9223372036854775808: must be"),
        ({"stop": Until(0.5), "evaluators": [Told()], "seeds": [1, 2]}, "seeds: 2 given, the rounds may take 8"),
    ],
)
def test_what_does_not_go_together_is_refused(backbone, given, says):
    with pytest.raises(UsageError, match=says):
        SelectiveSampler(backbone, "random")("a", **given, **ARGUMENTS)


@pytest.mark.parametrize(
    ("chances", "says"),
    [
        ([], r"chances = \[\]: must be an object or null"),
        ({"scores": [0.0], "rewards": [0.0]}, r"chances.rewards\[0\] = 0.0: must be a list"),
        ({"scores": [0.0], "rewards": [[0.0, "1"]]}, r"chances.rewards\[0\]\[1\] = '1': must be a number"),
        ({"scores": [0.0, 1.0], "rewards": [[0.0, 1.0], [1.0]]}, "as many quantiles"),
    ],
)
def test_chances_of_a_file(chances, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        load_plan(plan_file(tmp_path / "plan.json", chances=chances))
    good = {"scores": [0.0, 1.0], "rewards": [[0.0, 1.0], [1.0, 2.0]]}
    plan = load_plan(plan_file(tmp_path / "plan.json", chances=good, scorer="mine"))
    assert plan.chances.of(1.0, 1.5) == 0.5 and plan.scorer == "mine"


def test_generate_says_why(tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_sd().save_pretrained(folder)
    chances = {"scores": [0.0, 1.0], "rewards": [[0.0, 1.0], [1.0, 2.0]]}
    plan = plan_file(tmp_path / "plan.json", n=6, chances=chances, scorer="somebody's")
    arguments = ("generate", "a cat", "--model", str(folder), "--scorer", "random", "--steps", "10")
    likely = (*arguments, "--policy", str(plan), "--until", "-1", "--confidence", "0.7", "--out", str(tmp_path / "o"))
    assert "chance 1.000 is at or above the threshold 0.700: stopping" in run(*likely, capsys=capsys)
    (decision,) = json.loads((tmp_path / "o" / "result.json").read_text())["decisions"]
    assert decision["chance"] == 1 and decision["confidence"] == 0.7
    for flags, says in [
        (("--until", "0.9"), "until = 0.9: needs an evaluator"),
        (("--rounds", "2"), "--rounds 2: needs --until"),
        (("--until", "1", "--confidence", "0.5", "--rounds", "2"), "--rounds 2: with --confidence the plan says"),
        (("--confidence", "0.5"), "--confidence 0.5: needs --until"),
    ]:
        assert says in run(*arguments, *flags, expect=2, capsys=capsys)


def test_another_scorer_than_the_plan_was_made_with_is_told(tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_sd().save_pretrained(folder)
    arguments = ("generate", "a cat", "--model", str(folder), "--scorer", "random", "--steps", "10")
    for name, told in (("somebody's", True), ("random", False), ("", False)):
        plan = plan_file(tmp_path / "plan.json", scorer=name)
        main_says = run(*arguments, "--policy", str(plan), "--out", str(tmp_path / "o"), capsys=capsys, both=True)
        assert (f"made with the scores of {name}; its numbers may not be those of random" in main_says) == told
