"""What plans earn on tables of real scores, on prompts that they were not planned on.

    python -m research.planning.earnings FOLDER [--halves 10] [--budgets 40,60,80] [--only NAME] [--out figures.json]
    python -m research.planning.earnings FOLDER --told

FOLDER holds score tables; NAME_naft.npz, which ends before the last step, takes the finished pictures' rewards from
NAME_base.npz. Every table is planned on its even-numbered prompts and reported on the odd ones, and then on random
halves of the prompts. Three budgets of one table and one half take a minute or two on one core.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from probeselect.core.score_table import ScoreTable
from probeselect.data.score_table import read_score_table
from probeselect.policies.planner import Earnings, Planner, halves, standard_schedules
from probeselect.policies.search import search, search_at_random
from probeselect.policies.search_adaptive import search_adaptive

NAMES = ("best of n", "the paper's cut", "8 -> 4 -> 2", "random search", "plan", "adaptive")
LEADS = ("lead over best of n", "lead over plan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--halves", type=int, default=10, help="random ones")
    parser.add_argument("--budgets", default="40,60,80", help="rows")
    parser.add_argument("--only", default="", help="tables whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("figures.json"))
    parser.add_argument("--told", action="store_true", help="only print the tables of FOLDER's *.json, made before")
    given = parser.parse_args()
    if given.told:
        print("\n".join(told([line for path in given.folder.glob("*.json") for line in json.loads(path.read_text())])))
        return
    paths = [path for path in sorted(given.folder.glob("*.npz")) if given.only in path.stem]
    tables = {path.stem: table_of(path) for path in paths}
    budgets = [float(budget) for budget in given.budgets.split(",")]
    lines: list[dict[str, Any]] = []
    for half in range(given.halves + 1):  # the first is even and odd
        for name, table in tables.items():
            began = time.perf_counter()
            lines += ({"table": name, "half": half, **line} for line in figures(table, half, budgets))
            print(f"half {half}, {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            given.out.write_text(json.dumps(lines, indent=0))
    print("\n".join(told(lines)))


def table_of(path: Path) -> ScoreTable:
    whole = path.with_name(path.name.replace("_naft", "_base"))
    return read_score_table(path, None if whole == path else whole)


def split(prompts: int, half: int) -> tuple[Any, Any]:
    if half == 0:
        return halves(prompts)
    order = np.random.default_rng(half).permutation(prompts)
    return np.sort(order[: prompts // 2]), np.sort(order[prompts // 2 :])


def figures(table: ScoreTable, half: int, budgets: list[float]) -> Iterator[dict[str, Any]]:
    """Reward and cost of every schedule at every budget; for the adaptive one what others earn at its own cost."""
    planner = Planner(table, table.scorers[0], *split(len(table.rewards), half))
    fixed: dict[float, float] = {}
    adaptive: dict[float, Earnings] = {}
    standard: dict[str, Earnings] = {}
    for budget in budgets:
        space = planner.space(budget)
        make = planner.draws(space)
        found = search(space, make)
        chosen = {
            "plan": planner.fixed(found.plan),
            "random search": planner.fixed(search_at_random(space, make, found.tried).plan),
            "adaptive": planner.adaptive(search_adaptive(space, make).plan),
            "best of n": planner.best_of(budget),
        }
        fixed[budget], adaptive[budget] = mean(chosen["plan"]), chosen["adaptive"]
        for name, plan in standard_schedules(planner, planner.space(max(budgets))):
            if name != "the paper's cut for the budget":
                chosen[name] = standard[name] = standard.get(name) or planner.fixed(plan)
        for name, made in chosen.items():
            yield {"budget": budget, "schedule": name, "what": made.schedule, "reward": mean(made), "cost": made.cost}
    for budget, made in adaptive.items():
        others = {"lead over best of n": mean(planner.best_of(made.cost)), "lead over plan": between(fixed, made.cost)}
        for name, reward in others.items():
            yield {"budget": budget, "schedule": name, "reward": mean(made) - reward, "cost": made.cost}


def mean(made: Earnings) -> float:
    return float(np.nanmean(made.reward))


def between(fixed: dict[float, float], cost: float) -> float:
    """What fixed plans earn at a cost between two budgets, or beyond them: on the line through the nearest two."""
    budgets = sorted(fixed)
    if len(budgets) == 1:
        return fixed[budgets[0]]
    low = max(0, min(int(np.searchsorted(budgets, cost)) - 1, len(budgets) - 2))
    a, b = budgets[low], budgets[low + 1]
    return fixed[a] + (cost - a) / (b - a) * (fixed[b] - fixed[a])


def told(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Two Markdown tables: on the odd prompts, and leads over the random halves, mean and standard deviation."""
    value = {(x["table"], x["budget"], x["schedule"], x["half"]): x for x in lines}
    last = {table: max(x["half"] for x in lines if x["table"] == table) for table in {x["table"] for x in lines}}
    whole = range(1, min(last.values()) + 1)  # halves that all tables have
    cases = sorted({(x["table"], x["budget"]) for x in lines})

    def form(table: str) -> str:
        return ".4f" if value[table, cases[0][1], "best of n", 0]["reward"] < 0.5 else ".3f"

    yield f"| scores | rows | {' | '.join(NAMES)}, its rows | over best of n there | over a fixed plan there |"
    yield "|---" * (len(NAMES) + 4) + "|"
    for table, budget in cases:
        odd = {name: value[table, budget, name, 0] for name in (*NAMES, *LEADS) if (table, budget, name, 0) in value}
        cells = [f"{odd[name]['reward']:{form(table)}}" if name in odd else "-" for name in NAMES]
        leads = [f"{odd[name]['reward']:+{form(table)}}" for name in LEADS]
        cost = odd["adaptive"]["cost"]
        yield f"| {table} | {budget:g} | {' | '.join(cells)}, {cost:.1f} | {' | '.join(leads)} |"
    if len(whole) < 2:
        return
    yield f"\nOver {len(whole)} random halves:\n"
    yield (
        "| scores | rows | plan over best of n | over random search | adaptive's rows | adaptive over best of n there |"
        + (" over a fixed plan there |")
    )
    yield "|---" * 7 + "|"
    for table, budget in cases:

        def over(name: str, what: str = "reward", case: tuple[str, float] = (table, budget)) -> Any:
            return np.array([value[*case, name, half][what] for half in whole])

        leads = [over("plan") - over(name) for name in ("best of n", "random search")] + [over(name) for name in LEADS]
        cells = [f"{x.mean():+{form(table)}} ± {x.std(ddof=1):{form(table)}}" for x in leads]
        cost = over("adaptive", "cost")
        cells.insert(2, f"{cost.mean():.1f} ± {cost.std(ddof=1):.1f}")
        yield f"| {table} | {budget:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
