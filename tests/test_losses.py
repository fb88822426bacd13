"""Each loss against the formula written out in loops, values and gradients, invalid entries poisoned."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.probe.losses import (
    annealed,
    feature_distillation,
    info_nce,
    listnet,
    listwise,
    pairwise_logistic,
    standardised_regression,
)

P, N, D = 3, 4, 5
VALID = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]]).bool()  # one prompt with a lone candidate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_listwise(s: list[float], y: list[float], temperature: float, margin: float) -> list[float]:
    losses = []
    for s_i, y_i in zip(s, y, strict=True):
        own = math.exp(s_i / temperature)
        worse = sum(math.exp(s_j / temperature) for s_j, y_j in zip(s, y, strict=True) if y_j + margin < y_i)
        losses.append(-math.log(own / (own + worse)))
    return losses


@pytest.mark.parametrize("scope", ["prompt", "batch"])
@pytest.mark.parametrize(("temperature", "margin"), [(1.0, 0.0), (0.3, 0.5), (2.0, 100.0)])
def test_listwise(scope: str, temperature: float, margin: float) -> None:
    scores, rewards = normal(P, N), normal(P, N, seed=1).round(decimals=1)
    rewards[2, 1] = rewards[2, 0]  # a tie: neither is worse
    rows = [(scores[p][VALID[p]].tolist(), rewards[p][VALID[p]].tolist()) for p in range(P)]
    if scope == "batch":
        rows = [(scores[VALID].tolist(), rewards[VALID].tolist())]
    expected = [loss for s, y in rows for loss in slow_listwise(s, y, temperature, margin)]
    loss = listwise(scores, rewards, VALID, temperature, margin, scope)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(sum(expected) / VALID.sum().item(), abs=1e-12)
    assert (loss.item() == 0) == (margin == 100)


def test_listwise_margin_is_strict() -> None:
    scores, rewards = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert listwise(scores, rewards, valid, 1.0, margin=1.0) == 0
    assert listwise(scores, rewards, valid, 1.0, margin=0.99).item() == pytest.approx(math.log(2) / 2)


def test_listwise_is_stable_at_extreme_scores() -> None:
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    valid = torch.ones(1, 2, dtype=torch.bool)
    loss = listwise(scores, torch.tensor([[0.0, 1.0]]), valid, temperature=0.1, margin=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e5)  # 2e4 / 0.1, averaged over the two
    assert scores.grad is not None
    assert scores.grad.tolist() == [[5.0, -5.0]]


def valid_rows() -> list[tuple[list[float], list[float]]]:
    scores, rewards = normal(P, N), normal(P, N, seed=1)
    return [(scores[p][VALID[p]].tolist(), rewards[p][VALID[p]].tolist()) for p in range(P)]


@pytest.mark.parametrize(("temperature", "margin"), [(1.0, 0.0), (0.3, 0.5), (2.0, 100.0)])
def test_pairwise_logistic(temperature: float, margin: float) -> None:
    terms = [
        math.log(1 + math.exp(-(s[i] - s[j]) / temperature))
        for s, y in valid_rows()
        for i in range(len(s))
        for j in range(len(s))
        if y[j] + margin < y[i]
    ]
    loss = pairwise_logistic(normal(P, N), normal(P, N, seed=1), VALID, temperature, margin)
    assert loss.item() == pytest.approx(sum(terms) / max(len(terms), 1), abs=1e-12)


def test_listnet() -> None:
    expected = []
    for s, y in valid_rows():
        if len(s) > 1:
            p, q = ([math.exp(v / 0.4) for v in values] for values in (y, s))
            expected.append(-sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True)))
    loss = listnet(normal(P, N), normal(P, N, seed=1), VALID, 0.4)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_standardised_regression() -> None:
    errors = []
    for s, y in valid_rows():
        mean_s, mean_y = sum(s) / len(s), sum(y) / len(y)
        spread = math.sqrt(sum((v - mean_y) ** 2 for v in y) / len(y))
        errors += [(a - mean_s - ((b - mean_y) / spread if spread else 0)) ** 2 for a, b in zip(s, y, strict=True)]
    loss = standardised_regression(normal(P, N), normal(P, N, seed=1), VALID)
    assert loss.item() == pytest.approx(sum(errors) / len(errors), abs=1e-12)


def test_equal_rewards_ask_for_nothing() -> None:
    equal, valid = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool)
    assert pairwise_logistic(normal(2, 3), equal, valid, 1.0, 0.0) == 0
    assert standardised_regression(equal * 5, equal, valid) == 0
    assert listnet(equal, equal, valid, 1.0).item() == pytest.approx(math.log(3))


def test_annealing_is_linear_and_stays_within_its_ends() -> None:
    assert [annealed((1.0, 0.25), done) for done in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [1.0, 1.0, 0.625, 0.25, 0.25]


def test_info_nce_of_a_part_against_the_texts_of_all() -> None:
    """What a rank of several computes for its own groups: together, the whole."""
    u, e = normal(P, N, D), normal(P, D, seed=1)
    parts = [info_nce(u[p : p + 1], e, VALID[p : p + 1], 0.2, first=p) * VALID[p].sum() for p in range(P)]
    assert sum(parts).item() / VALID.sum().item() == pytest.approx(info_nce(u, e, VALID, 0.2).item())


def test_info_nce() -> None:
    u, e, temperature = normal(P, N, D), normal(P, D, seed=1), 0.2
    expected = []
    for p, n in VALID.nonzero().tolist():
        match = [math.exp(torch.cosine_similarity(u[p, n], e[q], dim=0).item() / temperature) for q in range(P)]
        expected.append(-math.log(match[p] / sum(match)))
    loss = info_nce(u, e, VALID, temperature)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_info_nce_of_a_single_prompt_says_nothing() -> None:
    assert info_nce(normal(1, N, D), normal(1, D), torch.ones(1, N, dtype=torch.bool), 0.1).item() == 0


@pytest.mark.parametrize("shape", [(), (D,), (2, 3, 3)])
def test_feature_distillation(shape: tuple[int, ...]) -> None:
    predicted, target = normal(P, N, *shape), normal(P, N, *shape, seed=1)
    squares = [
        (a - b) ** 2
        for p, n in VALID.nonzero().tolist()
        for a, b in zip(predicted[p, n].flatten().tolist(), target[p, n].flatten().tolist(), strict=True)
    ]
    loss = feature_distillation(predicted, target, VALID)
    assert loss.item() == pytest.approx(sum(squares) / len(squares))


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "listwise-prompt": (lambda s, v: listwise(s, normal(P, N, seed=1), v, 0.5, 0.1), normal(P, N)),
    "listwise-batch": (lambda s, v: listwise(s, normal(P, N, seed=1), v, 0.5, 0.1, "batch"), normal(P, N)),
    "pairwise": (lambda s, v: pairwise_logistic(s, normal(P, N, seed=1), v, 0.5, 0.1), normal(P, N)),
    "listnet": (lambda s, v: listnet(s, normal(P, N, seed=1), v, 0.5), normal(P, N)),
    "regression": (lambda s, v: standardised_regression(s, normal(P, N, seed=1), v), normal(P, N)),
    "info_nce": (lambda u, v: info_nce(u, normal(P, D, seed=1), v, 0.5), normal(P, N, D)),
    "distillation": (lambda f, v: feature_distillation(f, normal(P, N, D, seed=1), v), normal(P, N, D)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    loss, x = LOSSES[name]
    assert torch.autograd.gradcheck(lambda x: loss(x, VALID), x.clone().requires_grad_())


def test_info_nce_reaches_the_text_side() -> None:
    e = normal(P, D, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: info_nce(normal(P, N, D), e, VALID, 0.5), e)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_invalid_entries_neither_count_nor_learn(name: str, poison: float) -> None:
    loss, x = LOSSES[name]
    clean = loss(x, VALID)
    x = x.clone()
    x[~VALID] = poison
    x.requires_grad_()
    dirty = loss(x, VALID)
    dirty.backward()
    assert dirty.item() == clean.item()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[~VALID] == 0).all()
    assert (x.grad[VALID] != 0).any()


def test_poisoned_targets_of_invalid_entries_do_not_count() -> None:
    rewards, features = normal(P, N, seed=1), normal(P, N, D, seed=1)
    pairs = []
    for poison in (0.0, math.nan):
        rewards[~VALID], features[~VALID] = poison, poison
        x, f = normal(P, N).requires_grad_(), normal(P, N, D).requires_grad_()
        total = listwise(x, rewards, VALID, 0.5, 0.0, "batch") + feature_distillation(f, features, VALID)
        total.backward()
        assert x.grad is not None
        assert f.grad is not None
        assert x.grad.isfinite().all()
        assert f.grad.isfinite().all()
        pairs.append(total.item())
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("name", LOSSES)
def test_all_invalid_is_zero_with_a_graph(name: str) -> None:
    loss, x = LOSSES[name]
    x = torch.full_like(x, math.nan).requires_grad_()
    value = loss(x, torch.zeros(P, N, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_refuses_what_makes_no_sense() -> None:
    x, text = normal(P, N), normal(P, D)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="temperature = "):
            listwise(x, x, VALID, temperature, 0.0)
        with pytest.raises(UsageError, match="temperature = "):
            info_nce(normal(P, N, D), text, VALID, temperature)
    with pytest.raises(UsageError, match=r"margin = -0\.1"):
        listwise(x, x, VALID, 1.0, -0.1)
    with pytest.raises(UsageError, match="scope = 'group'"):
        listwise(x, x, VALID, 1.0, 0.0, "group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must agree"):
        listwise(x, x[:, :1], VALID, 1.0, 0.0)
    with pytest.raises(ValueError, match="must agree"):
        feature_distillation(normal(P, N, D), normal(P, N, 1), VALID)
