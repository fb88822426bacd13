"""A digest tells a candidate's own inputs, in whatever batch, from any others."""

import pytest
import torch

from probeselect.rollout.digests import TOLERANCE, Digester, K
from probeselect.rollout.rows import CallRows


def digest(args, i: int, n: int, digester: Digester | None = None):
    rows = CallRows.of(args, {})
    return (digester or Digester())(args, {}, rows).collected().of(i, n)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 8, 8), (3,), (16, 64, 64), (77, 33), (5, 1)])
def test_the_same_row_of_another_batch_matches_and_another_row_does_not(shape):
    first = noise(3, 4, 8, 8)
    values = noise(3, *shape, seed=1)
    together = [digest((first, values), i, 3) for i in range(3)]
    for i in range(3):
        alone = digest((first[[i]], values[[i]]), 0, 1)
        assert together[i].matches(alone)
        assert not together[(i + 1) % 3].matches(alone)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rounding_is_forgiven_and_ten_times_more_is_not(dtype):
    """In 40 draws of a difference: one projection that happens to be small must not hide it."""
    x = noise(1, 4, 32, 32).double()
    for seed in range(40):
        d = noise(1, 4, 32, 32, seed=seed + 1).double()
        d *= TOLERANCE[dtype] * x.norm() / d.norm()
        plain = digest((x.to(dtype),), 0, 1)
        assert plain.matches(digest(((x + 0.2 * d).to(dtype),), 0, 1))
        assert not plain.matches(digest(((x + 10 * d).to(dtype),), 0, 1))


def test_one_element_among_many_is_seen():
    x = noise(1, 4, 16, 16)
    other = x.clone()
    other[0, 2, 3, 4] += 1
    assert not digest((x,), 0, 1).matches(digest((other,), 0, 1))


def test_guidance_parts_belong_to_their_candidate():
    """Rows of n candidates come part by part: all without the prompt, then all with it."""
    x = noise(6, 4, 8, 8)
    assert digest((x,), 1, 3).matches(digest((x[[1, 4]],), 0, 1))
    assert not digest((x,), 1, 3).matches(digest((x[[4, 1]],), 0, 1))


def test_what_is_not_finite_on_both_sides_is_alike_and_on_one_side_is_not():
    x = noise(1, 4, 8, 8)
    lost = x.clone()
    lost[0, 0, 0, 0] = torch.nan
    assert digest((lost,), 0, 1).matches(digest((lost + 1,), 0, 1))
    assert not digest((lost,), 0, 1).matches(digest((x,), 0, 1))


def test_timesteps_numbers_and_words_count():
    x = noise(2, 4, 8, 8)
    plain = digest((x, torch.tensor(981.0), 3.5, "a"), 0, 2)
    assert plain.matches(digest((x, torch.tensor(981.0), 3.5, "a"), 0, 2))
    for other in ((torch.tensor(961.0), 3.5, "a"), (torch.tensor(981.0), 4.0, "a"), (torch.tensor(981.0), 3.5, "b")):
        assert not plain.matches(digest((x, *other), 0, 2))


def test_a_tensor_that_was_changed_in_place_is_read_again():
    digester, x = Digester(), noise(2, 4, 8, 8)
    before = digest((x,), 0, 2, digester)
    assert before.matches(digest((x,), 0, 2, digester))
    x += 1
    assert not before.matches(digest((x,), 0, 2, digester))


def test_a_digest_is_small():
    rows = CallRows.of((noise(2, 4, 64, 64),), {})
    (leaf,) = Digester()((noise(2, 4, 64, 64),), {}, rows).leaves
    assert leaf.sketch.shape == (2, K + 1)
