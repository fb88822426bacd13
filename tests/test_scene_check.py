"""The rules of scene-check on planted evidence: credit, grading, reasons, gradients."""

import pytest
import torch

from probeselect.embedded.captions import BACKGROUNDS, COLOURS, NOUNS, parse
from probeselect.evaluators.scene import CELL, GRID, MAP_SIZES, SIDE_UNIT, SceneCheck, facts, read_maps


def planted(*objects: tuple[str, str | None, int, int], background: str = "blue", side: float = 26) -> torch.Tensor:
    """Maps [1, ...] of a picture with (noun, colour, row, column) in grid cells."""
    maps = torch.zeros(1, sum(MAP_SIZES), GRID, GRID)
    maps[:, : len(NOUNS)] = -8
    start = len(NOUNS) + len(COLOURS)
    maps[:, start + BACKGROUNDS.index(background)] = 8
    for noun, colour, row, column in objects:
        maps[0, NOUNS.index(noun), row, column] = 6
        maps[0, -1, row, column] = side / SIDE_UNIT
        if colour:
            maps[0, len(NOUNS) + COLOURS.index(colour), row, column] = 8
    return maps


def judge(prompt: str, maps: torch.Tensor) -> tuple[float, list[str]]:
    check = SceneCheck.__new__(SceneCheck)  # the rules need no detector
    return float(check.score(maps, [prompt])[0]), check.reasons(maps, [prompt])[0]


RIGHT = "two dogs above a purple book on a blue background"
SCENE = (("dog", None, 3, 3), ("dog", None, 3, 12), ("book", "purple", 12, 8))


def test_a_right_picture_has_full_reward_and_no_complaint():
    reward, reasons = judge(RIGHT, planted(*SCENE))
    assert reward > 0.95 and reasons == []


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("three dogs above a purple book on a blue background", "two of three dogs"),
        ("a dog above a purple book on a blue background", "two dogs, not one"),
        ("two dogs above a red book on a blue background", "the book is purple, not red"),
        ("two dogs below a purple book on a blue background", "not dog below book"),
        ("two dogs to the left of a purple book on a blue background", "not dog left of book"),
        ("two dogs above a purple book on a pink background", "the background is blue, not pink"),
        ("two dogs on a blue background", "a stray book"),
        ("two cars above a purple book on a blue background", "no cars, not two"),
    ],
)
def test_each_error_costs_and_is_named(prompt, reason):
    best, _ = judge(RIGHT, planted(*SCENE))
    reward, reasons = judge(prompt, planted(*SCENE))
    assert reward < 0.8 * best and reason in reasons


def test_one_off_is_better_than_none():
    right = judge("two dogs on blue", planted(("dog", None, 3, 3), ("dog", None, 3, 12)))[0]
    near = judge("two dogs on blue", planted(("dog", None, 3, 3)))[0]
    none = judge("two dogs on blue", planted())[0]
    assert right > near > none


def test_size_is_judged():
    maps = planted(("frog", None, 8, 8), side=50)
    assert judge("a large frog", maps)[0] > 0.9
    reward, reasons = judge("a small frog", maps)
    assert reward < 0.6 and reasons == ["the frog is not small"]


def test_the_count_distribution_is_poisson_binomial():
    maps = planted(("dog", None, 3, 3), ("dog", None, 3, 12))
    maps[0, NOUNS.index("dog"), 3, 12] = 0.0  # half sure of the second
    distribution = read_maps(maps).count[0, NOUNS.index("dog")]
    assert torch.allclose(distribution[1:3], torch.tensor([0.5, 0.5]), atol=0.01)
    assert float(distribution.sum()) == pytest.approx(1)


def test_two_peaks_of_one_object_count_once():
    maps = planted(("dog", None, 8, 8))
    maps[0, NOUNS.index("dog"), 9, 9] = 5
    maps[0, NOUNS.index("panda"), 8, 9] = 4  # a chimera is what it is most
    evidence = read_maps(maps)
    assert evidence.count[0, NOUNS.index("dog")].argmax() == 1
    assert evidence.count[0, NOUNS.index("panda")].argmax() == 0


def test_positions_are_cell_centres():
    evidence = read_maps(planted(("dog", None, 2, 10)))
    noun = NOUNS.index("dog")
    assert float(evidence.x[0, noun, 0]) == 10.5 * CELL and float(evidence.y[0, noun, 0]) == 2.5 * CELL


def test_the_reward_can_be_climbed():
    """Gradients reach the maps, so that a probe can learn through the rules."""
    maps = planted(("dog", None, 3, 3), ("book", "red", 12, 8)).requires_grad_()
    check = SceneCheck.__new__(SceneCheck)
    check.score(maps, ["a dog above a purple book on blue"])[0].backward()
    purple = len(NOUNS) + COLOURS.index("purple")
    assert maps.grad[0, purple, 12, 8] > 0 > maps.grad[0, len(NOUNS) + COLOURS.index("red"), 12, 8]


def test_facts_are_what_the_caption_says():
    claims = [fact.claim for fact in facts(parse(RIGHT), read_maps(planted(*SCENE)), 0)]
    assert claims == ["two dogs", "one book", "purple book", "dog above book", "blue background", "nothing else"]


def distance(predicted: torch.Tensor, target: torch.Tensor) -> float:
    return float(SceneCheck.__new__(SceneCheck).feature_distance(predicted, target)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        planted(*SCENE[1:]),  # a dog is missing
        planted(*SCENE, ("dog", None, 12, 13)),  # one too many
        planted(("dog", None, 7, 3), *SCENE[1:]),  # elsewhere
        planted(("frog", None, 3, 3), *SCENE[1:]),
        planted(*SCENE[:2], ("book", "red", 12, 8)),
        planted(*SCENE, background="pink"),
        planted(*SCENE, side=50),
    ],
)
def test_a_probe_pays_for_every_kind_of_error(wrong):
    target = planted(*SCENE)
    assert distance(wrong, target) > distance(target, target) + 0.05


def test_the_best_prediction_of_a_doubtful_object_is_its_probability():
    """Half of the pictures have the second dog: the maps that cost least over both say one half."""
    there, absent = planted(*SCENE), planted(SCENE[0], SCENE[2])
    predicted = there.clone()
    cost = {}
    for logit in (-4.0, -1.0, 0.0, 1.0, 4.0):
        predicted[0, NOUNS.index("dog"), 2:5, 11:14] = logit  # a centre counts in the cells around it
        cost[logit] = distance(predicted, there) + distance(predicted, absent)
    assert min(cost, key=cost.get) == 0.0


def test_one_cell_off_costs_less_than_four():
    target = planted(("dog", None, 8, 8))
    near, far = (planted(("dog", None, 8, column)) for column in (9, 12))
    assert distance(near, target) < distance(far, target)
