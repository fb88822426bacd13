"""The scene grammar reads back what it says, and its splits cannot leak."""

import random

import pytest

from probeselect.core.errors import UsageError
from probeselect.embedded.captions import (
    BACKGROUNDS,
    COLOURED_NOUNS,
    MAX_OBJECTS,
    VOCABULARY,
    Spec,
    Subject,
    caption,
    draw_prompts,
    draw_spec,
    parse,
    split_of,
)
from research.embedded.negatives import ERRORS, wrong_spec
from research.embedded.render import IMAGE_SIZE, draw_scene, related, render


def specs(count: int, seed: int = 0):
    rng = random.Random(seed)
    return [(draw_spec(rng), rng) for _ in range(count)]


def test_every_caption_is_read_back():
    for spec, rng in specs(3000):
        assert parse(caption(spec, rng)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("two dogs above a purple book", Spec((Subject("dog", 2), Subject("book", 1, "purple")), "above")),
        ("A panda to the LEFT of an apple, on blue.", Spec((Subject("panda"), Subject("apple")), "left of", "blue")),
        ("red car on a black background", Spec((Subject("car", 1, "red"),), None, "black")),
        ("a photo of three hearts", Spec((Subject("heart", 3),))),
        ("a large frog", Spec((Subject("frog", 1, None, "large"),))),
        ("dogs", Spec((Subject("dog", 2),))),
    ],
)
def test_what_people_type_is_read(text, spec):
    assert parse(text) == spec


def test_a_prompt_without_a_known_noun_is_refused():
    with pytest.raises(UsageError, match="unicorn"):
        parse("a unicorn on blue")


def test_the_split_does_not_depend_on_the_template():
    for spec, rng in specs(300):
        assert len({split_of(caption(spec, rng)) for _ in range(5)}) == 1


def test_splits_have_their_shares_and_are_stable():
    texts = list(draw_prompts(200, split="test"))
    assert texts == list(draw_prompts(200, split="test")) and len(set(texts)) == 200
    rng = random.Random(1)
    drawn = [split_of(caption(draw_spec(rng), rng)) for _ in range(4000)]
    assert 0.11 < drawn.count("test") / 4000 < 0.19 and 0.75 < drawn.count("train") / 4000 < 0.85


def test_the_vocabulary_holds_every_word():
    for spec, rng in specs(2000):
        assert set(caption(spec, rng).lower().split()) <= set(VOCABULARY)


def test_scenes_show_what_the_caption_says():
    for spec, rng in specs(300):
        scene = draw_scene(spec, rng)
        assert len(scene.objects) == sum(subject.count for subject in spec.subjects) <= MAX_OBJECTS
        for subject in spec.subjects:
            shown = [placed for placed in scene.objects if placed.noun == subject.noun]
            assert len(shown) == subject.count
            assert subject.colour is None or {placed.colour for placed in shown} == {subject.colour}
            assert all((placed.colour is not None) == (placed.noun in COLOURED_NOUNS) for placed in shown)
        if spec.relation:
            first, second = ([p for p in scene.objects if p.noun == s.noun] for s in spec.subjects)
            assert all(related(spec.relation, a, b) for a in first for b in second)
        assert scene.background in BACKGROUNDS and spec.background in (None, scene.background)


def test_a_render_is_a_picture_of_its_scene():
    spec = Spec((Subject("book", 1, "red", "large"),), None, "white")
    rng = random.Random(0)
    scene = draw_scene(spec, rng)
    picture = render(scene, rng)
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and picture.dtype == "uint8"
    placed = scene.objects[0]
    red, green, blue = picture[int(placed.y), int(placed.x)].astype(int)
    assert red > 120 and green < 100 and blue < 120
    assert picture[0, 0].min() > 200  # the corner is background


@pytest.mark.parametrize("error", ERRORS)
def test_wrong_captions_are_wrong_in_one_way(error):
    found = 0
    for spec, rng in specs(400):
        wrong = wrong_spec(spec, rng, error)
        if wrong is not None:
            found += 1
            assert wrong != spec
            assert parse(caption(wrong, rng)) == wrong
    assert found > 50
