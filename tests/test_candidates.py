"""Seeds belong to candidates: which (prompt, seed) pairs a call makes, and what it refuses."""

import pytest

from probeselect.core.candidates import Candidate, candidates_of
from probeselect.core.errors import UsageError


def test_groups_in_prompt_order_with_consecutive_seeds() -> None:
    assert candidates_of(["a", "b"], n=2, seed=7) == [
        Candidate(0, "a", 7),
        Candidate(0, "a", 8),
        Candidate(1, "b", 7),
        Candidate(1, "b", 8),
    ]


def test_given_seeds_keep_their_order() -> None:
    assert [c.seed for c in candidates_of("a", seeds=[9, 2, 5])] == [9, 2, 5]
    assert candidates_of("a", n=3, seeds=[9, 2, 5]) == candidates_of(["a"], seeds=[9, 2, 5])


def test_equal_prompts_are_distinct_groups() -> None:
    assert [(c.group, c.seed) for c in candidates_of(["a", "a"], n=1)] == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("prompts", "n", "seeds", "seed", "says"),
    [
        ([], 1, None, 0, "at least one prompt"),
        (["a", " \n"], 1, None, 0, "prompt 2 is empty"),
        (["é\0"], 1, None, 0, "prompt 1 holds a NUL at byte 2"),
        (["ab\udc80"], 1, None, 0, "prompt 1 is not valid UTF-8 at byte 2"),
        (["a"], 0, None, 0, "n = 0: at least 1"),
        (["a"], None, None, 0, "n = None"),
        (["a"], 2, [1, 2, 3], 0, "n = 2 with 3 seeds"),
        (["a"], None, [], 0, "0 seeds"),
        (["a"], None, [4, 1, 4], 0, "seed 4 is given twice"),
        (["a"], None, [-1], 0, "seed -1: must be from 0"),
        (["a"], 2, None, 2**63 - 1, "seed 9223372036854775808: must be from 0"),
    ],
)
def test_refuses(prompts: list[str], n: int | None, seeds: list[int] | None, seed: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        candidates_of(prompts, n, seeds, seed)
    assert "\n" not in str(caught.value)
