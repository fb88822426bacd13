"""What a schedule costs and what it earns on a table of scores: replayed, nothing is generated.

Shapes: T points of the trajectory, P prompts, N candidates per prompt. A schedule draws n of a prompt's candidates,
looks at their scores where the plan says, and finishes those that are left; of the finished, the evaluator itself then
keeps the best k. Costs are in denoiser rows: one is one step of one candidate.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probeselect.core.metrics import Floats, best_of_by_prompt
from probeselect.policies.plans import FixedPlan

DRAWS = 256  # of n candidates, for every prompt
CANDIDATES, CUT = 5, 0.2  # of the paper's single cut, and its rung
PSP = (8, (0.25, 0.5), (4, 2))  # candidates, rungs and who goes on; ECCV 2026


def in_words(plan: FixedPlan) -> str:
    """Such as "6 -> 4 -> 1 at 25%, 40%"."""
    at = ", ".join(f"{rung:.0%}" for rung in plan.rungs)
    return f"{' -> '.join(map(str, (plan.n, *plan.keep)))} at {at}"


def rows_of(plan: FixedPlan) -> int:
    """Denoiser rows that a plan takes for one prompt."""
    counts = (plan.n, *plan.keep)
    ends = (*(step + 1 for step in plan.steps), plan.total_steps)
    return sum(count * (end - begin) for count, begin, end in zip(counts, (0, *ends[:-1]), ends, strict=True))


def scored_of(plan: FixedPlan) -> int:
    """How many times a plan scores a candidate, for one prompt."""
    return sum((plan.n, *plan.keep[:-1]))


@dataclass(frozen=True)
class Earned:
    """Mean reward of what a plan keeps, prompt by prompt, over the draws of its candidates."""

    per_prompt: Floats  # [U]; prompts with fewer than n candidates are left out
    used: NDArray[np.bool_]  # [P]
    exact: bool  # every draw was counted

    @property
    def by_prompt(self) -> Floats:
        """[P]; NaN for those that were left out."""
        found = np.full(len(self.used), np.nan)
        found[self.used] = self.per_prompt
        return found

    @property
    def mean(self) -> float:
        return float(self.per_prompt.mean()) if len(self.per_prompt) else math.nan


def replay(
    plan: FixedPlan,
    scores: Mapping[int, ArrayLike],
    rewards: ArrayLike,
    valid: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Earned:
    """What `plan` earns.

    scores: [P, N] after each 0-based step of the plan; higher is better, ties are broken at random.
    rewards: [P, N], of the finished pictures. Every draw is counted where there are no more than `draws` of them, else
    that many are made at random; the same seed makes the same ones, so that two plans of one n can be compared.
    Raises ValueError for a step without scores.
    """
    r = np.asarray(rewards, dtype=np.float64)
    v = np.ones(r.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if missing := [step for step in plan.steps if step not in scores]:
        raise ValueError(f"no scores after step {missing[0]}; there are some after {sorted(scores)}")
    tables = [np.asarray(scores[step], dtype=np.float64) for step in plan.steps]
    used = v.sum(axis=1) >= plan.n
    earned, exact = [], True
    for p in np.flatnonzero(used):
        there = np.random.default_rng([seed, int(p)]).permutation(np.flatnonzero(v[p]))  # so that ties favour no place
        exact = exact and math.comb(len(there), plan.n) <= draws
        left = there[_drawn(len(there), plan.n, draws, seed)]  # [D, n], candidates still running
        for table, keep in zip(tables, plan.keep, strict=True):
            order = np.argsort(-table[p][left], axis=1, kind="stable")[:, :keep]
            left = np.take_along_axis(left, order, axis=1)
        finished = np.sort(r[p][left], axis=1)[:, -plan.k :]
        earned.append(finished.mean())
    return Earned(np.array(earned), used, exact)


def _drawn(candidates: int, n: int, draws: int, seed: int) -> NDArray[np.intp]:
    """Places [D, n] of n candidates drawn without replacement: all draws, or `draws` random ones."""
    if math.comb(candidates, n) <= draws:
        return np.array(list(itertools.combinations(range(candidates), n)), dtype=np.intp)
    rng = np.random.default_rng([seed, candidates])
    return np.argsort(rng.random((draws, candidates)), axis=1)[:, :n]


def best_of_rows(rows: float, total_steps: int, rewards: ArrayLike, valid: ArrayLike, k: int = 1) -> Floats:
    """Mean reward [P] of the best k of n finished pictures, for the n that so many rows allow.

    Between two whole n by the share of prompts that would get one more. NaN where a prompt has too few candidates, and
    for fewer rows than k pictures take.
    """
    n, rest = divmod(rows / total_steps, 1)
    if n < k:
        return np.full(len(np.asarray(rewards)), np.nan)
    low = best_of_by_prompt(int(n), rewards, valid, k)
    return low if rest == 0 else low + rest * (best_of_by_prompt(int(n) + 1, rewards, valid, k) - low)
