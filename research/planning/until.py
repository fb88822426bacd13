"""What it takes to reach a reward, on prompts that were not planned on: `generate --until`, with tables of real scores.

    python -m research.planning.until TABLE.npz [--rewards TABLE.npz] [--budget 40]

Planned on the even-numbered prompts, reported on the odd ones. Three ways, each with at most four budgets of rows a
prompt: whole pictures one by one until one is good enough; rounds of the fixed plan, finished and judged; rounds of the
adaptive plan until that is likely. Targets are quantiles of all rewards of the planning prompts.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from probeselect.data.score_table import read_score_table
from probeselect.policies.planner import Planner, halves
from probeselect.policies.plans import AdaptivePlan, FixedPlan
from probeselect.policies.search import search
from probeselect.policies.search_adaptive import MAX_BUDGETS, search_adaptive
from probeselect.policies.simulate import Draws, enough_by, paths_of, rows_by_round, survivors
from probeselect.policies.stopping import UntilLikely

DRAWS = 64
SHARES = 0.5, 0.8, 0.95  # of all rewards that a target is above
CONFIDENCES = 0.5, 0.7, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--rewards", type=Path, help="table of the finished pictures, where TABLE.npz has none")
    parser.add_argument("--budget", type=float, default=40, help="rows that plans are made for")
    given = parser.parse_args()
    table = read_score_table(given.table, given.rewards)
    planner = Planner(table, table.scorers[0], *halves(len(table.rewards)))
    space = planner.space(given.budget)
    make = planner.draws(space)
    fixed, adaptive = search(space, make).plan, search_adaptive(space, make).plan
    known = table.rewards[planner.planning][table.valid[planner.planning]]
    most = MAX_BUDGETS * given.budget
    print("| target | way | reached | rows | right where it said so |\n|---|---|---|---|---|")
    for share in SHARES:
        target = float(np.quantile(known, share))
        ways: list[tuple[str, float, float, float | None]] = [
            ("one by one", *verified(whole(planner), target, planner.total_steps, most)),
            ("rounds, judged", *verified(finished(planner, fixed), target, fixed.rows, most)),
        ]
        ways += [(f"likely by {c:.0%}", *likely(planner, adaptive, target, c)) for c in CONFIDENCES]
        for way, reached, rows, right in ways:
            told = "" if right is None else f"{right:.0%}"
            print(f"| {target:.3f} (better than {share:.0%}) | {way} | {reached:.0%} | {rows:.1f} | {told} |")


def draws_of(planner: Planner, steps: tuple[int, ...], most: int) -> Draws:
    tables = {step: planner.scorer.scores[step][planner.report] for step in steps}
    rewards, valid = planner.table.rewards[planner.report], planner.table.valid[planner.report]
    return Draws.at_random(tables, rewards, valid, most, DRAWS, seed=2)


def whole(planner: Planner) -> Any:
    """Rewards [P, D, W] of pictures one after another."""
    return draws_of(planner, (), planner.most).rewards


def finished(planner: Planner, plan: FixedPlan) -> Any:
    """Rewards [P, D, W] of the best that each round of a fixed plan finishes."""
    rounds = planner.most // plan.n
    draws = draws_of(planner, plan.steps, plan.n * rounds)
    left = survivors(plan, plan.steps, plan.n, draws, rounds)
    return np.take_along_axis(draws.rewards[:, :, None], left, axis=3).max(3)


def verified(rewards: Any, target: float, rows: float, most: float) -> tuple[float, float, None]:
    """Share of prompts that reach a target and mean rows, when each stops at the first round that does."""
    within = rewards[:, :, : int(most // rows)]
    there = within >= target
    reached = there.any(2)
    rounds = np.where(reached, there.argmax(2) + 1, there.shape[2])
    return float(reached.mean()), float(rounds.mean() * rows), None


def likely(planner: Planner, plan: AdaptivePlan, target: float, confidence: float) -> tuple[float, float, float | None]:
    """The same, when each stops as soon as that is likely; and how many reach it of those who stop for that."""
    paths = paths_of(plan.round, draws_of(planner, plan.round.steps, plan.n), plan.rounds)
    there = enough_by(plan.schedule(UntilLikely(target, confidence)).stop, paths)
    stops = there.any(2)
    at = np.where(stops, there.argmax(2), plan.rounds - 1)
    good = np.take_along_axis(paths.reward, at[..., None], axis=2)[..., 0] >= target
    right = float(good[stops].mean()) if stops.any() else None
    return float(good.mean()), float(rows_by_round(plan.round, plan.rounds)[at].mean()), right


if __name__ == "__main__":
    main()
