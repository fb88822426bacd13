"""What `policy=` and `stop=` of a call may be, made into one schedule that fits together. Needs no model."""

from collections.abc import Sequence
from pathlib import Path

from probeselect.core.errors import UsageError
from probeselect.policies.plan_file import load_plan
from probeselect.policies.plans import AdaptivePlan, FixedPlan
from probeselect.policies.policy import POLICIES, KeepAll, Policy
from probeselect.policies.schedule import Schedule
from probeselect.policies.stopping import Once, StoppingRule, UntilLikely

N, K = 5, 1


def schedule_for(
    n: int | None,
    k: int | None,
    rungs: Sequence[float],
    policy: str | Policy | FixedPlan | AdaptivePlan,
    stop: StoppingRule | UntilLikely | None = None,
) -> Schedule:
    """The schedule of a call.

    n, k: None means the plan's, or 5 and 1. rungs: of a plan its own count. policy: a name of POLICIES, a plan.json, a
    plan, or any Policy. stop: None means the plan's own rule, or one round.

    Raises UsageError for what does not fit together, an unknown name, and a plan that is unreadable.
    """
    if isinstance(policy, str) and policy not in POLICIES:
        if not Path(policy).is_file():
            raise UsageError(f"policy {policy}: neither {', '.join(POLICIES)}, nor a plan file")
        policy = load_plan(Path(policy))
    if isinstance(policy, FixedPlan | AdaptivePlan):
        return _planned(policy, n, k, stop)
    n, k = (N if n is None else n), (K if k is None else k)
    if isinstance(stop, UntilLikely):
        raise UsageError("confidence: needs a plan of `plan --adaptive`, which says how likely a reward is")
    if isinstance(policy, str):
        if n >= 1:
            Schedule(n, k, (), KeepAll())  # refuses an n or k that cannot be, in words of their own
        policy = POLICIES[policy](k, len(rungs))
    rungs = tuple(float(rung) for rung in rungs)
    if not rungs and not isinstance(policy, KeepAll):
        raise UsageError("rungs = none: give increasing fractions between 0 and 1, like 0.2 or 0.2,0.4")
    several = stop is not None and stop.rounds > 1
    return Schedule(n, k, rungs, policy, stop or Once(), keeps=k if several else None)


def _planned(
    plan: FixedPlan | AdaptivePlan, n: int | None, k: int | None, stop: StoppingRule | UntilLikely | None
) -> Schedule:
    n, k = n or plan.n, k or plan.k
    if (n, k) != (plan.n, plan.k):
        raise UsageError(f"n = {n}, k = {k}: the plan is made for n = {plan.n}, k = {plan.k}")
    return plan.schedule(stop)


def check_together(schedule: Schedule, diversity: float, record: bool, judged: bool) -> None:
    """Raises UsageError for options that do not go together."""
    if not 0 <= diversity <= 1:
        raise UsageError(f"diversity = {diversity:g}: must be from 0, the best alone, to 1, difference alone")
    adaptive = schedule.stop.rounds > 1 and not schedule.stop.needs_rewards
    if adaptive and (diversity or record):
        asked = "diversity" if diversity else "record"
        raise UsageError(f"{asked}: is for plans that start all candidates together, not for an adaptive one")
    if schedule.stop.needs_rewards and not judged:
        raise UsageError(
            f"until = {schedule.stop.threshold:g}: needs an evaluator to judge finished pictures, or a confidence"
        )
    if record and not schedule.rungs:
        raise UsageError("record: needs a rung, where activations are kept")
