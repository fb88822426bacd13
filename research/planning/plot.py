"""Reward against compute, as a picture: best of n, and what plans earn with each scorer, fixed and adaptive.

    python -m research.planning.plot DATA --probe embedded --out plans.png
    python -m research.planning.plot TABLE.npz OTHER.npz --rewards TABLE.npz --out plans.png

Planned on the even-numbered prompts, told of the odd ones, with 95 % intervals over prompts for the fixed plans.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.figure import Figure

from probeselect.core.score_table import ScoreTable
from probeselect.evaluation.charts import COLOURS, GREY
from probeselect.evaluation.scoring import score_table
from probeselect.evaluation.sources import HeldOut, open_source
from probeselect.policies.planner import Earnings, Planner, halves, outcome_of
from probeselect.policies.search import search
from probeselect.policies.search_adaptive import search_adaptive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="DATA|TABLE.npz")
    parser.add_argument("--rewards", type=Path)
    parser.add_argument("--probe", action="append", default=[])
    parser.add_argument("--scorers", default="", help="of DATA; default: all but random")
    parser.add_argument("--budgets", default="30,40,52,66,80,100")
    parser.add_argument("--out", type=Path, default=Path("plans.png"))
    given = parser.parse_args()
    first = given.sources[0]
    source = first if first.is_dir() else {path.stem: path for path in given.sources}
    opened = open_source(source, given.probe, "", given.rewards)
    if isinstance(opened, HeldOut):
        print("\n".join((*opened.faults, *opened.notes)))
    table = score_table(opened, opened.evaluator) if isinstance(opened, HeldOut) else opened
    wanted = given.scorers.split(",") if given.scorers else [s.name for s in table.scorers if s.name != "random"]
    lines = curves(table, wanted, [float(budget) for budget in given.budgets.split(",")])
    draw(lines, table.evaluator, given.out)
    given.out.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n")


def curves(table: ScoreTable, scorers: list[str], budgets: list[float]) -> dict[str, list[dict[str, Any]]]:
    """By name of the line: what each of its plans earns, and for what cost."""
    lines: dict[str, list[Earnings]] = {}
    for scorer in table.scorers:
        if scorer.name not in scorers:
            continue
        planner = Planner(table, scorer, *halves(len(table.rewards)))
        for budget in budgets:
            space = planner.space(budget)
            make = planner.draws(space)
            lines.setdefault("best of n", []).append(planner.best_of(budget))
            lines.setdefault(scorer.name, []).append(planner.fixed(search(space, make).plan))
            made = planner.adaptive(search_adaptive(space, make).plan)
            lines.setdefault(f"{scorer.name}, adaptive", []).append(made)
            print(scorer.name, budget, made.schedule, flush=True)
    found = {name: [msgspec.to_builtins(outcome_of(each, None)) for each in made] for name, made in lines.items()}
    found["best of n"] = found["best of n"][: len(budgets)]
    return found


def draw(lines: dict[str, list[dict[str, Any]]], evaluator: str, out: Path) -> None:
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    scorers = [name for name in lines if name != "best of n" and "adaptive" not in name]
    colours = dict(zip(scorers, COLOURS, strict=False))
    for name, made in lines.items():
        whose, _, adaptive = name.partition(", ")
        style = {"color": colours.get(whose, GREY), "linestyle": "--" if adaptive else "-", "marker": "o"}
        axes.plot([x["cost"] for x in made], [x["expected"] for x in made], markersize=4, label=name, **style)
        if not adaptive:
            low, high = zip(*(x["interval"] for x in made), strict=True)
            axes.fill_between([x["cost"] for x in made], low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xlabel("denoiser rows a prompt, mean over prompts that were not planned on")
    axes.set_ylabel(f"mean {evaluator} of what is kept")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
