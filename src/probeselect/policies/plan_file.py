"""plan.json, and what of a call must fit together: n, k, rungs and policy."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probeselect.core.errors import UsageError
from probeselect.core.rungs import validate_rungs
from probeselect.policies.chances import Chances
from probeselect.policies.expecting import Expectation
from probeselect.policies.plans import AdaptivePlan, FixedPlan, Plan
from probeselect.policies.policy import Halving, KeepAll, Policy, TopK, check_k


def load_policy(name_or_path: str | Path, k: int, rung_count: int = 1) -> Policy:
    """The policy called `topk`, `halving` (over `rung_count` rungs) or `all`, or the plan in a JSON file.

    Raises UsageError for k < 1, an unknown name, and a plan that is unreadable or keeps another k.
    """
    check_k(k)
    match str(name_or_path):
        case "topk":
            return TopK(k)
        case "halving":
            return Halving(k, rung_count)
        case "all":
            return KeepAll()
    plan = load_plan(Path(name_or_path))
    if plan.k != k:
        raise UsageError(f"k = {k}: the plan {name_or_path} is made for k = {plan.k}")
    return plan


def check_schedule(
    n: int | None, k: int | None, rungs: Sequence[float], policy: str | Policy
) -> tuple[int, int, tuple[float, ...], Policy]:
    """n, k, rungs and policy of a call, checked against each other. Raises UsageError; needs no model."""
    if policy not in ("topk", "halving", "all") and isinstance(policy, str):
        policy = load_plan(Path(policy))
    if isinstance(policy, Plan):
        n, k, rungs = n or policy.n, k or policy.k, policy.rungs
        if (n, k) != (policy.n, policy.k):
            raise UsageError(f"n = {n}, k = {k}: the plan is made for n = {policy.n}, k = {policy.k}")
    n, k = (5 if n is None else n), (1 if k is None else k)
    if n < 1:
        raise UsageError(f"n = {n}: at least 1 candidate per prompt is needed")
    if not 1 <= k <= n:
        raise UsageError(f"k = {k}: must be from 1 to n = {n}")
    decide = load_policy(policy, k, len(rungs)) if isinstance(policy, str) else policy
    if isinstance(decide, KeepAll) and not rungs:
        return n, k, (), decide
    return n, k, validate_rungs(rungs), decide


def load_plan(path: Path) -> Plan:
    """Reads plan.json (format 1), fixed or adaptive. Raises UsageError that opens with the file's name and says what is
    wrong.

    Fields that do not steer the choice (rows, expected, interval, baselines) are not looked at.
    """
    if not path.is_file():
        raise UsageError(f"policy {path}: neither topk, halving or all, nor a plan file")
    try:
        return _plan_of(json.loads(path.read_bytes()))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable JSON file ({error})") from error


def _plan_of(fields: Any) -> Plan:
    if not isinstance(fields, dict):
        raise UsageError("must hold a JSON object")
    if (kind := fields.get("kind", "fixed")) not in ("fixed", "adaptive"):
        raise UsageError(f"kind = {kind!r}: must be 'fixed', 'adaptive' or left out")
    if (version := _integer(fields, "format")) != 1:
        raise UsageError(f"format = {version}: must be 1")
    rungs = fields.get("rungs")
    if not isinstance(rungs, list) or not all(isinstance(rung, dict) for rung in rungs):
        raise UsageError('rungs: must be a list of {"step": ..., "keep": ...}')
    n, k, total_steps = (_integer(fields, name) for name in ("n", "k", "total_steps"))
    steps = tuple(_integer(rung, "step") for rung in rungs)
    keep = tuple(_integer(rung, "keep") for rung in rungs)
    if kind == "fixed":
        return FixedPlan(n, k, steps, keep, total_steps)
    wave, finish = _integer(fields, "wave"), _integer(fields, "finish")
    if wave < 1 or n % wave:
        raise UsageError(f"n = {n}: must be some waves of {wave}")
    names = [field.name for field in dataclasses.fields(Expectation)]
    told = fields.get("expectation")
    if not isinstance(told, dict) or set(told) != set(names):
        raise UsageError(f"expectation: must be an object of {', '.join(names)}")
    expectation = Expectation(**{name: _number(told, name) for name in names})
    least_gain = _number(fields, "least_gain")
    chances = _chances(fields["chances"]) if "chances" in fields else None
    scorer = str(fields.get("scorer", ""))
    return AdaptivePlan(wave, n // wave, k, steps, keep, finish, least_gain, expectation, total_steps, chances, scorer)


def _chances(told: Any) -> Chances:
    wanted = 'chances: must be {"scores": [...], "rewards": [[...], ...]} of numbers'
    if not isinstance(told, dict) or set(told) != {"scores", "rewards"}:
        raise UsageError(wanted)
    scores, rewards = told["scores"], told["rewards"]
    if not isinstance(rewards, list) or not all(isinstance(each, list) for each in [scores, *rewards]):
        raise UsageError(wanted)
    if not all(_finite(value) for each in [scores, *rewards] for value in each):
        raise UsageError(wanted)
    if len({len(each) for each in rewards}) != 1:
        raise UsageError("chances: every bin must hold as many quantiles")
    return Chances(tuple(scores), tuple(tuple(each) for each in rewards))


def _number(fields: dict[str, Any], name: str) -> float:
    value: Any = fields.get(name)
    if not _finite(value):
        raise UsageError(f"{name} = {value!r}: must be a finite number")
    return float(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int:  # to isinstance, true and false are integers
        raise UsageError(f"{name} = {value!r}: must be a whole number")
    return value
