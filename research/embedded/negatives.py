"""Captions that are wrong in one way: what an evaluator must tell from the true one."""

import random
from collections.abc import Callable
from dataclasses import replace

from probeselect.embedded.captions import BACKGROUNDS, COLOURS, MAX_OBJECTS, NOUNS, RELATIONS, Spec, Subject

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _swap(spec: Spec, index: int, **changes: object) -> Spec:
    subjects = list(spec.subjects)
    subjects[index] = replace(subjects[index], **changes)  # type: ignore[arg-type]
    return replace(spec, subjects=tuple(subjects))


def _unused_noun(spec: Spec, rng: random.Random) -> str:
    return rng.choice([noun for noun in NOUNS if noun not in {s.noun for s in spec.subjects}])


def _wrong_noun(spec: Spec, rng: random.Random) -> Spec:
    return _swap(spec, rng.randrange(len(spec.subjects)), noun=_unused_noun(spec, rng), colour=None)


def _wrong_count(spec: Spec, rng: random.Random) -> Spec | None:
    index = rng.randrange(len(spec.subjects))
    subject = spec.subjects[index]
    if subject.size:
        return None
    return _swap(spec, index, count=rng.choice([c for c in (1, 2, 3) if c != subject.count]))


def _wrong_colour(spec: Spec, rng: random.Random) -> Spec | None:
    coloured = [i for i, subject in enumerate(spec.subjects) if subject.colour]
    if not coloured:
        return None
    index = rng.choice(coloured)
    return _swap(spec, index, colour=rng.choice([c for c in COLOURS if c != spec.subjects[index].colour]))


def _wrong_relation(spec: Spec, rng: random.Random) -> Spec | None:
    if not spec.relation:
        return None
    others = [relation for relation in RELATIONS if relation != spec.relation]
    return replace(spec, relation=rng.choice([_OPPOSITE[spec.relation], *others]))


def _wrong_background(spec: Spec, rng: random.Random) -> Spec | None:
    if not spec.background:
        return None
    return replace(spec, background=rng.choice([name for name in BACKGROUNDS if name != spec.background]))


def _missing_object(spec: Spec, rng: random.Random) -> Spec | None:
    """The caption asks for one noun more than the picture shows."""
    if len(spec.subjects) > 1 or spec.subjects[0].count >= MAX_OBJECTS or spec.subjects[0].size:
        return None
    return replace(spec, subjects=(*spec.subjects, Subject(_unused_noun(spec, rng))))


def _extra_object(spec: Spec, rng: random.Random) -> Spec | None:
    """The picture shows one noun more than the caption asks for."""
    if len(spec.subjects) < 2:
        return None
    return replace(spec, subjects=(rng.choice(spec.subjects),), relation=None)


ERRORS: dict[str, Callable[[Spec, random.Random], Spec | None]] = {
    "noun": _wrong_noun,
    "count": _wrong_count,
    "colour": _wrong_colour,
    "relation": _wrong_relation,
    "background": _wrong_background,
    "missing object": _missing_object,
    "extra object": _extra_object,
}


def wrong_spec(spec: Spec, rng: random.Random, error: str | None = None) -> Spec | None:
    """`spec` with one `error` (any that fits when None); None where that error does not fit."""
    if error is not None:
        return ERRORS[error](spec, rng)
    while True:
        wrong = ERRORS[rng.choice(list(ERRORS))](spec, rng)
        if wrong is not None:
            return wrong
