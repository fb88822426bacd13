"""What it takes to reach a reward, on prompts that were not planned on: `generate --until`, with tables of real scores.

    python benchmarks/until.py TABLE.npz [--rewards TABLE.npz] [--budget 40]

Planned on the even-numbered prompts, told of the odd ones. Three ways, each with at most four budgets of rows a prompt:
whole pictures one by one until one is good enough; the fixed plan's waves, finished and judged; the adaptive plan's
waves until that is likely. Targets are quantiles of all rewards of the planning prompts.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from probeselect.evaluation.inputs import of_score_tables
from probeselect.policies.planner import Planner, halves
from probeselect.policies.plans import AdaptivePlan, FixedPlan
from probeselect.policies.search import Draws, best_of, search
from probeselect.policies.search_adaptive import CAP, paths_of, search_adaptive, shape_of
from probeselect.policies.simulate import rows_of

DRAWS = 64
SHARES = 0.5, 0.8, 0.95  # of all rewards that a target is above
CONFIDENCES = 0.5, 0.7, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--rewards", type=Path, help="table of the finished pictures, where TABLE.npz has none")
    parser.add_argument("--budget", type=float, default=40, help="rows that plans are made for")
    given = parser.parse_args()
    judged = of_score_tables({given.table.stem: given.table}, given.rewards)
    planner = Planner(judged, judged.scorers[0], *halves(len(judged.rewards)))
    space = planner.space(given.budget)
    make = planner.draws(space)
    fixed, adaptive = search(space, make).plan, search_adaptive(space, make).plan
    known = judged.rewards[planner.planning][judged.valid[planner.planning]]
    print("| target | way | reached | rows | where it said so |\n|---|---|---|---|---|")
    for share in SHARES:
        target = float(np.quantile(known, share))
        rows: list[tuple[str, Any, Any, Any]] = [
            ("one by one", *verified(whole(planner), target, planner.total_steps, CAP * given.budget)),
            ("waves, judged", *verified(finished(planner, fixed), target, rows_of(fixed), CAP * given.budget)),
        ]
        rows += [(f"likely by {c:.0%}", *likely(planner, adaptive, target, c)) for c in CONFIDENCES]
        for way, reached, cost, said in rows:
            told = "" if said is None else f"{said:.0%}"
            print(f"| {target:.3f} (better than {share:.0%}) | {way} | {reached:.0%} | {cost:.1f} | {told} |")


def draws_of(planner: Planner, steps: tuple[int, ...], most: int) -> Draws:
    tables = {step: planner.scorer.scores[step][planner.report] for step in steps}
    judged = planner.judged
    return Draws(tables, judged.rewards[planner.report], judged.valid[planner.report], most, DRAWS, seed=2)


def whole(planner: Planner) -> Any:
    """Rewards [P, D, W] of pictures one after another."""
    return draws_of(planner, (), planner.most).rewards


def finished(planner: Planner, plan: FixedPlan) -> Any:
    """Rewards [P, D, W] of the best that each wave of a fixed plan finishes."""
    waves = planner.most // plan.n
    draws = draws_of(planner, plan.steps, plan.n * waves)
    shape = (*draws.rewards.shape[:2], waves, plan.n)
    left = np.broadcast_to(np.arange(plan.n * waves).reshape(waves, plan.n), shape)
    for step, keep in zip(plan.steps, plan.keep, strict=True):
        scores = np.take_along_axis(draws.scores(step)[:, :, None], left, axis=3)
        left = np.take_along_axis(left, best_of(scores, keep), axis=3)
    return np.take_along_axis(draws.rewards[:, :, None], left, axis=3).max(3)


def verified(rewards: Any, target: float, rows: float, most: float) -> tuple[float, float, None]:
    """Share of prompts that reach a target and mean rows, when each stops at the first wave that does."""
    within = rewards[:, :, : int(most // rows)]
    there = within >= target
    reached = there.any(2)
    waves = np.where(reached, there.argmax(2) + 1, there.shape[2])
    return float(reached.mean()), float(waves.mean() * rows), None


def likely(planner: Planner, plan: AdaptivePlan, target: float, confidence: float) -> tuple[float, float, float | None]:
    """The same, when each stops as soon as that is likely; and how many reach it of those who stop for that."""
    paths = paths_of(shape_of(plan), draws_of(planner, plan.steps, plan.n), plan.waves)
    assert plan.chances is not None
    chance = np.vectorize(lambda score: plan.chances.of(score, target))(paths.kth)
    there = chance >= confidence
    stops = there.any(2)
    at = np.where(stops, there.argmax(2), plan.waves - 1)
    good = np.take_along_axis(paths.reward, at[..., None], axis=2)[..., 0] >= target
    said = float(good[stops].mean()) if stops.any() else None
    return float(good.mean()), float(paths.rows[at].mean()), said


if __name__ == "__main__":
    main()
