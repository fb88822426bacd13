"""Who goes on: order, ties, NaN, counts per rung, and plan files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from probeselect.core.errors import UsageError
from probeselect.policies.named import schedule_for
from probeselect.policies.plan_file import load_plan
from probeselect.policies.plans import FixedPlan
from probeselect.policies.policy import POLICIES, Halving, KeepAll, TopK, best_first

SCORES = torch.tensor([0.1, 0.9, 0.5, 0.9, -0.3])
PLAN: dict[str, Any] = {
    "format": 1,
    "n": 6,
    "k": 1,
    "rungs": [{"step": 4, "keep": 4}, {"step": 7, "keep": 2}, {"step": 12, "keep": 1}],
    "total_steps": 20,
    "rows": 59,
    "expected": 1.43,
    "interval": [1.40, 1.46],
    "baselines": {},
}


def plan_file(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps({name: value for name, value in (PLAN | changes).items() if value != "gone"}))
    return path


def test_best_first_breaks_ties_by_candidate_order() -> None:
    assert best_first(SCORES) == [1, 3, 2, 0, 4]
    assert best_first(torch.zeros(4)) == [0, 1, 2, 3]
    assert best_first(torch.tensor([])) == []


def test_nan_ranks_last_even_below_minus_infinity() -> None:
    scores = torch.tensor([math.nan, -math.inf, math.nan, 1.0, math.inf])
    assert best_first(scores) == [4, 3, 1, 0, 2]


def test_topk_and_all() -> None:
    assert TopK(2)(SCORES, 0) == [1, 3]
    assert TopK(2)(SCORES[:2], 1) == [1, 0]
    assert TopK(9)(SCORES, 0) == KeepAll()(SCORES, 0) == [1, 3, 2, 0, 4]


@pytest.mark.parametrize(
    ("n", "k", "rung_count", "kept"),
    [
        (10, 1, 3, [5, 2, 1]),
        (10, 1, 4, [5, 2, 1, 1]),
        (10, 3, 3, [5, 3, 3]),
        (40, 2, 3, [20, 10, 2]),
        (5, 2, 1, [2]),
        (3, 5, 2, [3, 3]),
    ],
)
def test_halving(n: int, k: int, rung_count: int, kept: list[int]) -> None:
    policy = Halving(k, rung_count)
    scores = torch.arange(n)
    for rung_index, count in enumerate(kept):
        chosen = policy(scores, rung_index)
        assert chosen == list(range(len(scores)))[::-1][:count]
        scores = scores[sorted(chosen)].argsort()
    with pytest.raises(UsageError, match=f"made for {rung_count} rungs, asked at rung {rung_count + 1}"):
        policy(scores, rung_count)


def test_names() -> None:
    rungs = (0.2, 0.4, 0.6)
    assert schedule_for(5, 2, rungs, "topk").policy == TopK(2)
    assert schedule_for(5, 2, rungs, "halving").policy == Halving(2, 3)
    assert schedule_for(5, 1, (), "all").policy == KeepAll()
    assert set(POLICIES) == {"topk", "halving", "all"}


def test_plan_keeps_its_counts_at_its_fractions(tmp_path: Path) -> None:
    plan = load_plan(plan_file(tmp_path))
    assert isinstance(plan, FixedPlan)
    assert (plan.n, plan.k, plan.rungs) == (6, 1, (0.25, 0.4, 0.65))
    assert plan(torch.tensor([1.0, 6, 3, 5, 2, 4]), 0) == [1, 3, 5, 2]
    assert plan(torch.tensor([1.0, 6, 3, 5]), 1) == [1, 3]
    assert plan(torch.tensor([1.0, 6]), 2) == [1]


def test_a_plan_may_finish_more_than_it_keeps(tmp_path: Path) -> None:
    plan = load_plan(plan_file(tmp_path, rungs=[{"step": 4, "keep": 2}], kind="fixed"))
    assert plan(SCORES, 0) == [1, 3]


RUNG = {"step": 4, "keep": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format = 2: must be 1"),
        ({"format": True}, "format = true: must be 1"),
        ({"n": "gone"}, "has no field 'n'"),
        ({"n": 6.0}, "n = 6.0: must be a whole number"),
        ({"k": 0}, "k = 0: at least 1"),
        ({"k": 7}, "must fall from n = 6 to no less than k = 7"),
        ({"rungs": "gone"}, "has no field 'rungs'"),
        ({"rungs": [4]}, r"rungs\[0\] = 4: must be an object"),
        ({"rungs": []}, "one of each per rung"),
        ({"rungs": [{"step": 4}]}, r"rungs\[0\]: has no field 'keep'"),
        ({"rungs": [{"step": "4", "keep": 1}]}, r"rungs\[0\].step = '4': must be a whole number"),
        ({"rungs": [RUNG, RUNG]}, r"steps \[4, 4\]: must increase"),
        ({"rungs": [{"step": 5, "keep": 2}, RUNG]}, r"steps \[5, 4\]: must increase"),
        ({"rungs": [{"step": 3, "keep": 1}, {"step": 4, "keep": 2}]}, r"keep \[1, 2\]: must fall"),
        ({"rungs": [{"step": 3, "keep": 7}]}, r"keep \[7\]: must fall from n = 6"),
        ({"rungs": [{"step": 3, "keep": 0}]}, r"keep \[0\]: must fall"),
        ({"rungs": [{"step": -1, "keep": 1}]}, "step -1 of 20"),
        ({"rungs": [{"step": 19, "keep": 1}]}, "step 19 of 20: .* from 0 to 18"),
        ({"total_steps": 12}, "step 12 of 12"),
        ({"total_steps": "gone"}, "has no field 'total_steps'"),
        ({"kind": "clever"}, "kind = 'clever': must be 'adaptive' or 'fixed'"),
    ],
)
def test_refuses_a_bad_plan_by_its_file_name(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = plan_file(tmp_path, **changes)
    with pytest.raises(UsageError, match=says) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"1"])
def test_refuses_what_is_no_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"plan\.json: (not a readable JSON file|must hold an object)"):
        load_plan(path)


def test_refuses_unknown_names_and_counts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="policy best: neither topk, halving, all, nor a plan file"):
        schedule_for(5, 1, (0.2,), "best")
    with pytest.raises(UsageError, match="nor a plan file"):
        schedule_for(5, 1, (0.2,), str(tmp_path))
    for name in ("topk", "halving", "all"):
        with pytest.raises(UsageError, match="k = 0"):
            schedule_for(5, 0, (0.2,), name)
    with pytest.raises(UsageError, match=r"n = 6, k = 2: the plan is made for n = 6, k = 1"):
        schedule_for(None, 2, (0.2,), str(plan_file(tmp_path)))
    for policy in (TopK, Halving):
        with pytest.raises(UsageError, match="k = 0"):
            policy(0)
