"""`probeselect plan`: the schedule that earns most for a budget, and what to expect of it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probeselect.commands.options import Json, check_source, once
from probeselect.commands.registry import command
from probeselect.core.errors import UsageError

if TYPE_CHECKING:
    from probeselect.policies.plan_file import Outcome, PlanFile


@command("Schedules")
def plan(
    source: Annotated[Path, typer.Argument(metavar="DIR|TABLE.npz", help="a dataset, or a table of scores")],
    budget: Annotated[float, typer.Option(help="denoiser rows a prompt, one being one step of one candidate")],
    k: Annotated[int, typer.Option("-k", "--k", help="pictures to keep of each prompt")] = 1,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="decide prompt by prompt: open rounds until one is good enough")
    ] = False,
    scoring_cost: Annotated[
        float | None, typer.Option(help="rows that scoring one candidate once is worth; default: 0, or as timed")
    ] = None,
    timing: Annotated[
        list[Path] | None, typer.Option(help="result.json of generate with this scorer: costs in seconds too")
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="table whose last row is the finished pictures, where TABLE.npz has none")
    ] = None,
    probe: Annotated[list[str] | None, typer.Option(help="for DIR: embedded, or a probe's folder")] = None,
    scorer: Annotated[str, typer.Option(help="for DIR: whose scores; default: the probe's, or the preview's")] = "",
    evaluator: Annotated[str, typer.Option(help="for DIR: NAME[=FOLDER]; default: what the probe predicts")] = "",
    out: Annotated[Path, typer.Option(help="the plan, for `generate --policy`")] = Path("plan.json"),
    as_json: Json = False,
) -> None:
    """Search schedules on every second prompt, report on the others, write the best as a plan."""
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, must be a file")
    check_source(source)
    if source.is_dir() and rewards:
        raise UsageError("--rewards: is for score tables; a dataset has its own")
    if not source.is_dir() and (probe or scorer or evaluator):
        raise UsageError("--probe, --scorer and --evaluator: need a dataset; a score table is one scorer's already")
    scorers = once([(Path(each).name, each) for each in probe or []], "--probe")

    import msgspec

    from probeselect.evaluation.plan import plan as plan_for
    from probeselect.evaluation.timing import read_timing
    from probeselect.policies.plan_file import write_plan

    found = plan_for(
        source, budget, scorers, scorer=scorer, k=k, adaptive=adaptive, evaluator=evaluator, rewards=rewards,
        scoring_cost=scoring_cost, timing=read_timing(timing) if timing else None,
    )  # fmt: skip
    write_plan(out, found)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
        return
    for note in found.notes:
        print(f"probeselect: {note}", file=sys.stderr)
    for line in lines(found):
        print(line)
    print(f"{out} is for `probeselect generate --policy {out}`")


def lines(plan: "PlanFile") -> list[str]:
    """A plan for people: what it does, what it earns, and against what."""
    earns = _with_interval(plan.expected, plan.interval)
    tried = f"{plan.prompts['report']} held-out prompts ({plan.tried} schedules tried)"
    found = [f"{plan.schedule}: {_cost(plan)}, {plan.evaluator} {earns} on {tried}"]
    for name, each in plan.baselines.items():
        if each.expected is not None:
            lead = "" if each.lead is None else _with_interval(each.lead, each.lead_interval, "+")
            more = f"; the plan earns {lead} more" if lead else ""
            found.append(f"  {name}, {each.schedule}: {_cost(each)}, {each.expected:.3f}{more}")
    return found


def _cost(earned: "PlanFile | Outcome") -> str:
    return f"{earned.cost:.1f} rows" + (f" ({earned.seconds:.2f} s)" if isinstance(earned.seconds, float) else "")


def _with_interval(value: Any, interval: Any, sign: str = "") -> str:
    low, high = interval
    text = format(value, f"{sign}.3f")
    return text if low is None else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"
