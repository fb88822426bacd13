"""`plan`: the schedule that earns most for a budget, from score tables or from a dataset."""

from pathlib import Path

import msgspec

from probeselect.core.errors import UsageError
from probeselect.core.score_table import ScoreTable
from probeselect.evaluation.scoring import score_table
from probeselect.evaluation.sources import Scorers, Source, open_source
from probeselect.evaluation.timing import Timing
from probeselect.policies.plan_file import PlanFile
from probeselect.policies.planner import Planner, halves, plan_for


def plan(
    source: Source,
    budget: float,
    scorers: Scorers | None = None,
    *,
    scorer: str = "",
    k: int = 1,
    adaptive: bool = False,
    evaluator: str = "",
    rewards: str | Path | None = None,
    scoring_cost: float | None = None,
    timing: Timing | None = None,
) -> PlanFile:
    """Search schedules on every second prompt, report on the others: what plan.json holds, see `write_plan`.

    found = plan("flux.npz", budget=40)              # steps of the denoiser for one prompt, all candidates together
    sampler(prompt, policy=found.plan())

    source, scorers, evaluator, rewards: as for `evaluate`. scorer: by whose scores to choose, default: the first of
    `scorers`, or the first that there is. k: pictures to keep of each prompt. adaptive: decide prompt by prompt, in
    rounds. scoring_cost: rows that scoring one candidate once is worth; default: 0, or as timed.

    Raises UsageError as `open_source` does, for a scorer that is not there, and for a budget that cannot be.
    """
    opened = open_source(source, scorers, evaluator, rewards)
    first, notes = "", list[str]()
    if isinstance(opened, ScoreTable):
        table = opened
    else:
        table = score_table(opened, opened.evaluator)
        first, notes = next(iter(opened.probes), ""), [*opened.faults, *opened.notes]
    known = {each.name: each for each in table.scorers}
    chosen = known.get(scorer or first or table.scorers[0].name)
    if chosen is None:
        raise UsageError(f"scorer {scorer!r}: there are the scores of {', '.join(known)}")
    if timing is not None and scoring_cost is None:
        timed = list(timing.score) if table is opened else [chosen.name]  # a file's name says nothing of its scorer
        if len(timed) != 1:
            raise UsageError(f"timing: runs of {', '.join(timed) or 'no scorer'}; a score table is of one")
        scoring_cost = timing.scoring_cost(timed[0])
    planner = Planner(
        table, chosen, *halves(len(table.rewards)), k=k, scoring_cost=scoring_cost or 0.0,
        seconds_per_row=timing.row if timing else None,
    )  # fmt: skip
    found = plan_for(planner, budget, adaptive)
    return msgspec.structs.replace(found, notes=(*notes, *found.notes))
