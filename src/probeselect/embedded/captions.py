"""The scene grammar: what a caption of the embedded backbone can say, as text and as facts.

Knows words only, no pixels. A caption is drawn from a `Spec` by a template, and any prompt
made of the same words is read back into a `Spec` by `parse`, which is what `scene-check` judges by.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from probeselect.core.errors import UsageError

NOUNS = (
    "panda",
    "dog",
    "frog",
    "penguin",
    "apple",
    "banana",
    "mushroom",
    "car",
    "star",
    "balloon",
    "heart",
    "book",
)
COLOURED_NOUNS = frozenset({"car", "star", "balloon", "heart", "book"})  # their sprites can be recoloured
COLOURS = ("red", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("white", "gray", "black", "blue", "green", "yellow", "orange", "pink")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = ("no", "one", "two", "three")
MAX_OBJECTS = 3
SPLITS = ("train", "val", "test")

_PHRASE_OF_RELATION = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
}
_TEMPLATES = (
    "{scene} on a {background} background",
    "{scene} on {background}",
    "a {background} picture of {scene}",
)
_PLAIN_TEMPLATES = ("{scene}", "a picture of {scene}")


_NO_MEANING = frozenset({"a", "an", "the", "picture", "background", "of", "on", "with", "and", "to"})


@dataclass(frozen=True)
class Subject:
    """`count` objects of one noun that share a colour (None: the caption does not say) and a size."""

    noun: str
    count: int = 1
    colour: str | None = None
    size: str | None = None

    def words(self) -> str:
        described = [word for word in (self.size, self.colour) if word]
        if self.count == 1:
            return " ".join(["a" if (described or [self.noun])[0] != "apple" else "an", *described, self.noun])
        return " ".join([COUNTS[self.count], *described, self.noun + ("es" if self.noun.endswith("s") else "s")])


@dataclass(frozen=True)
class Spec:
    """What a caption says: its subjects, how the first stands to the second, the background."""

    subjects: tuple[Subject, ...]
    relation: str | None = None
    background: str | None = None

    def words(self) -> str:
        joint = f" {_PHRASE_OF_RELATION[self.relation]} " if self.relation else " and "
        return joint.join(subject.words() for subject in self.subjects)


def draw_spec(rng: random.Random) -> Spec:
    """Draw what a scene shows: one or two nouns, one to three objects in all."""
    nouns = rng.sample(NOUNS, 2)
    kind = rng.random()
    if kind < 0.22:
        subjects = [_draw_subject(rng, nouns[0], 1, rng.choice((None, None, *SIZES)))]
    elif kind < 0.42:
        subjects = [_draw_subject(rng, nouns[0], rng.choice((2, 2, 3)))]
    else:
        counts = rng.choice(((1, 1), (1, 1), (2, 1), (1, 2)))
        subjects = [_draw_subject(rng, noun, count) for noun, count in zip(nouns, counts, strict=True)]
    relation = rng.choice(RELATIONS) if len(subjects) == 2 and rng.random() < 0.65 else None
    colours = {subject.colour for subject in subjects}
    background = rng.choice([name for name in BACKGROUNDS if name not in colours])  # green on green shows nothing
    return Spec(tuple(subjects), relation, background if rng.random() < 0.8 else None)


def _draw_subject(rng: random.Random, noun: str, count: int, size: str | None = None) -> Subject:
    colour = rng.choice(COLOURS) if noun in COLOURED_NOUNS and rng.random() < 0.85 else None
    return Subject(noun, count, colour, size)


def caption(spec: Spec, rng: random.Random) -> str:
    """Say `spec` in words, by a template drawn with `rng`."""
    template = rng.choice(_TEMPLATES if spec.background else _PLAIN_TEMPLATES)
    return template.format(scene=spec.words(), background=spec.background)


def split_of(text: str) -> str:
    """Which split a prompt belongs to, by a hash of its text: 80 % train, 5 % val, 15 % test.

    Only words that carry meaning are hashed, sorted, so that the same scene said by another template
    cannot stand in another split.
    """
    words = sorted(word for word in re.findall(r"[a-z]+", text.lower()) if word not in _NO_MEANING)
    part = int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:4], "big") / 2**32
    return "train" if part < 0.80 else "val" if part < 0.85 else "test"


def draw_prompts(count: int, seed: int = 0, split: str = "train") -> Iterator[str]:
    """Yield `count` different captions of one split, the same ones for the same seed."""
    if split not in SPLITS:
        raise UsageError(f"--split {split!r}: expected one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}:{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        text = caption(draw_spec(rng), rng)
        if text not in seen and split_of(text) == split:
            seen.add(text)
            yield text


_SINGULAR = {noun: noun for noun in NOUNS} | {noun + "s": noun for noun in NOUNS}
_COUNT_OF_WORD = {"a": 1, "an": 1, "one": 1, "the": 1, "two": 2, "three": 3}


def parse(text: str) -> Spec:
    """Read a prompt into what it asks for.

    Words that the grammar does not have are passed over. Raises UsageError when no known noun is named.
    """
    words = re.findall(r"[a-z]+", text.lower())
    subjects: list[Subject] = []
    relation = background = colour = size = None
    count = 0
    for i, word in enumerate(words):
        rest = words[i + 1 : i + 3]
        if word in _SINGULAR:
            subjects.append(Subject(_SINGULAR[word], count or (1 if word in NOUNS else 2), colour, size))
            count, colour, size = 0, None, None
        elif word in _COUNT_OF_WORD:
            count = _COUNT_OF_WORD[word]
        elif word in SIZES:
            size = word
        elif word in BACKGROUNDS and _names_background(words, i):
            background, count = word, 0
        elif word in COLOURS:
            colour = word
        elif word in ("above", "below") or (word in ("left", "right") and rest[:1] == ["of"]):
            relation, count = (word if word in RELATIONS else f"{word} of"), 0
    if not subjects:
        raise UsageError(f"prompt {text!r}: names none of the nouns that scene-check knows ({', '.join(NOUNS)})")
    return Spec(tuple(subjects[:2]), relation if len(subjects) > 1 else None, background)


def _names_background(words: list[str], i: int) -> bool:
    """Whether the colour word at `i` paints the background, not an object."""
    following = words[i + 1] if i + 1 < len(words) else ""
    return following in ("background", "picture") or following not in (*_SINGULAR, *COLOURS)


VOCABULARY = tuple(
    sorted(
        {*_SINGULAR, *COLOURS, *BACKGROUNDS, *SIZES, *_COUNT_OF_WORD, *_NO_MEANING}
        | {"left", "right", "above", "below"}
    )
)
