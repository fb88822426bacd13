"""`probeselect plan`: the schedule that earns most for a budget, and what to expect of it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probeselect.commands.options import Json
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
        bool, typer.Option("--adaptive", help="decide prompt by prompt: open waves until one is good enough")
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
    from probeselect.evaluation.timing import read_timing

    seconds = read_timing(timing) if timing else None
    notes: list[str] = []
    if source.is_dir():
        if rewards:
            raise UsageError("--rewards: is for score tables; a dataset has its own")
        judged, notes = judged_of_dataset(source, probe or [], evaluator)
    else:
        if probe or scorer or evaluator:
            raise UsageError("--probe, --scorer and --evaluator: need a dataset; a score table is one scorer's already")
        from probeselect.evaluation.inputs import of_score_tables

        judged = of_score_tables({source.stem: source}, rewards)
    import msgspec

    from probeselect.policies.plan_file import write_plan
    from probeselect.policies.planner import Planner, halves, plan_for

    chosen = _chosen(judged, scorer, [Path(each).name for each in probe or []])
    if seconds and scoring_cost is None:
        if not source.is_dir() and len(seconds.score) != 1:
            raise UsageError(f"--timing: runs of {', '.join(seconds.score) or 'no scorer'}; a score table is of one")
        scoring_cost = seconds.scoring_cost(chosen.name if source.is_dir() else next(iter(seconds.score)))
    planner = Planner(
        judged, chosen, *halves(len(judged.rewards)), k=k, scoring_cost=scoring_cost or 0.0,
        seconds_per_row=seconds.row if seconds else None,
    )  # fmt: skip
    found = plan_for(planner, budget, adaptive)
    found = msgspec.structs.replace(found, notes=(*notes, *found.notes))
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


def _chosen(judged: Any, name: str, probes: list[str]) -> Any:
    """The scorer to plan with. Raises UsageError for a name that none has."""
    known = {scorer.name: scorer for scorer in judged.scorers}
    wanted = name or next((probe for probe in probes if probe in known), judged.scorers[0].name)
    if wanted not in known:
        raise UsageError(f"--scorer {name!r}: there are the scores of {', '.join(known)}")
    return known[wanted]


def judged_of_dataset(folder: Path, probes: list[str], evaluator: str) -> tuple[Any, list[str]]:
    """The dataset's scorers, on prompts that no probe was trained on; what there is to be told of them."""
    from probeselect.evaluation.inputs import of_table
    from probeselect.evaluation.sources import open_source

    source = open_source(folder, probes, evaluator)
    judged = of_table(source.dataset, source.table, source.evaluator, source.probes)
    return judged, [*source.faults, *source.notes]
