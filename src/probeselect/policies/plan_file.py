"""plan.json: its fields, its reader and its writer."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from probeselect.core.errors import UsageError
from probeselect.core.files import read_json, to_json
from probeselect.policies.chances import Chances
from probeselect.policies.expecting import Expectation
from probeselect.policies.plans import AdaptivePlan, FixedPlan, Plan, RoundPlan

MAX_PLAN = 1 << 20  # bytes
Interval = tuple[float | None, float | None]  # 95 %, [low, high]


class PlanRung(msgspec.Struct, frozen=True):
    """`keep` candidates go on after the 0-based `step`."""

    step: int
    keep: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a schedule earned on held-out prompts, and what it took."""

    schedule: str
    rows: float  # steps of the denoiser, mean over prompts
    cost: float  # those and the scoring, in rows
    expected: float | None  # mean reward; None where nothing could be measured
    interval: Interval
    seconds: float | msgspec.UnsetType = msgspec.UNSET
    lead: float | msgspec.UnsetType | None = msgspec.UNSET  # by how much the plan earns more, on prompts that both have
    lead_interval: Interval | msgspec.UnsetType = msgspec.UNSET


class PlanFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that plan.json holds. What does not steer a run (from `schedule` on) is not needed to read one."""

    format: Literal[1]
    kind: Literal["fixed", "adaptive"] = "fixed"
    wave: int | None = None  # adaptive: candidates of one round
    finish: int | None = None
    least_gain: float | None = None
    expectation: Expectation | None = None
    chances: Chances | None = None
    n: int
    k: int
    rungs: tuple[PlanRung, ...]
    total_steps: int
    schedule: str = ""
    rows: float | None = None
    cost: float | None = None
    expected: float | None = None
    interval: Any = None
    seconds: float | msgspec.UnsetType = msgspec.UNSET
    baselines: Any = None  # name -> Outcome
    scorer: str = ""
    evaluator: str = ""
    budget: float | None = None
    scoring_cost: float | None = None
    prompts: Any = None
    planned: float | None = None
    tried: int | None = None
    notes: Any = ()

    @classmethod
    def of(cls, plan: Plan) -> "PlanFile":
        """What steers a run, and nothing else."""
        if isinstance(plan, FixedPlan):
            return cls(format=1, n=plan.n, k=plan.k, rungs=_rungs(plan), total_steps=plan.total_steps)
        return cls(
            format=1, kind="adaptive", wave=plan.round.n, finish=plan.round.finish, least_gain=plan.least_gain,
            expectation=plan.expectation, chances=plan.chances, n=plan.n, k=plan.k, rungs=_rungs(plan.round.plan),
            total_steps=plan.round.total_steps, scorer=plan.scorer,
        )  # fmt: skip

    def plan(self) -> Plan:
        """The plan that it holds. Raises UsageError for one that cannot be."""
        steps, keep = tuple(rung.step for rung in self.rungs), tuple(rung.keep for rung in self.rungs)
        if self.kind == "fixed":
            return FixedPlan(self.n, self.k, steps, keep, self.total_steps)
        for name in ("wave", "finish", "least_gain", "expectation"):
            if getattr(self, name) is None:
                raise UsageError(f"{name}: is missing, an adaptive plan needs it")
        assert self.wave is not None and self.finish is not None
        assert self.least_gain is not None and self.expectation is not None
        if self.wave < 1 or self.n % self.wave:
            raise UsageError(f"n = {self.n}: must be some rounds of wave = {self.wave}")
        one = RoundPlan(self.wave, steps, keep, self.total_steps, self.k, self.finish)
        rounds = self.n // self.wave
        return AdaptivePlan(one, rounds, self.least_gain, self.expectation, self.chances, self.scorer)


def _rungs(plan: FixedPlan) -> tuple[PlanRung, ...]:
    return tuple(PlanRung(step, keep) for step, keep in zip(plan.steps, plan.keep, strict=True))


def load_plan(path: Path) -> Plan:
    """Reads plan.json (format 1), fixed or adaptive. Raises UsageError that opens with the file's name and says what is
    wrong."""
    if not path.is_file():
        raise UsageError(f"policy {path}: there is no such plan file")
    try:
        return read_json(path, PlanFile, MAX_PLAN).plan()
    except UsageError as error:
        raise error if str(error).startswith(str(path)) else UsageError(f"{path}: {error}") from error


def write_plan(path: Path, plan: PlanFile) -> None:
    """Writes plan.json, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(to_json(plan))
    partial.replace(path)
