"""Diversity: the best alone at 0, difference alone at 1, and what lies between."""

import pytest
import torch

from probeselect.core.errors import UsageError
from probeselect.policies.diversity import cosine_similarity, diverse
from probeselect.policies.named import check_together, schedule_for

TWINS = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])  # 0 and 1 are alike


def test_without_weight_it_is_the_best_k():
    scores = torch.tensor([0.3, 0.9, float("nan"), 0.5])
    assert diverse(scores, torch.ones(4, 4), 3, 0.0) == [1, 3, 0]


def test_a_twin_of_the_best_gives_way():
    scores = torch.tensor([0.9, 0.8, 0.1])
    assert diverse(scores, TWINS, 2, 0.0) == [0, 1]
    assert diverse(scores, TWINS, 2, 0.5) == [0, 2]
    assert diverse(scores, TWINS, 3, 0.5) == [0, 2, 1]


def test_the_scale_of_scores_does_not_matter():
    scores = torch.tensor([0.9, 0.8, 0.1])
    for weight in (0.2, 0.4, 0.6):
        assert diverse(scores, TWINS, 2, weight) == diverse(1000 * scores - 7, TWINS, 2, weight)


def test_by_a_second_formula():
    draw = torch.Generator().manual_seed(0)
    scores, maps = torch.randn(7, generator=draw), torch.randn(7, 3, 4, 4, generator=draw)
    similarity = cosine_similarity(maps)
    for weight in (0.3, 0.7):
        taken = [int(scores.argmax())]
        standing = {i: sum(bool(scores[j] < scores[i]) for j in range(7)) / 6 for i in range(7)}
        while len(taken) < 4:
            rest = [i for i in range(7) if i not in taken]
            worth = [(1 - weight) * standing[i] - weight * max(float(similarity[i, j]) for j in taken) for i in rest]
            taken.append(rest[worth.index(max(worth))])
        assert diverse(scores, similarity, 4, weight) == taken


def test_similarity_ignores_what_all_share():
    common = 100 * torch.ones(1, 2, 3, 3)
    found = cosine_similarity(
        common + torch.tensor([1.0, 1.0, -2.0])[:, None, None, None] * torch.eye(3).expand(3, 2, 3, 3)
    )
    assert found[0, 1] == pytest.approx(1) and found[0, 2] == pytest.approx(-1)
    assert torch.allclose(found, found.T)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_that_cannot_be_is_refused(weight):
    with pytest.raises(UsageError, match="diversity ="):
        check_together(schedule_for(2, 1, (0.2,), "topk"), weight, record=False, judged=False)
