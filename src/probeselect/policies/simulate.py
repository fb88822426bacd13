"""Schedules replayed on a table of scores: what they earn and what they cost; nothing is generated.

Shapes: P prompts, N candidates a prompt, D draws of them, W rounds, h candidates that come through a round's last rung.
Costs are in denoiser rows: one is one step of one candidate. Of the finished, the evaluator itself keeps the best k.
Every policy and every stopping rule that runs live is replayed here as it is.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats, Mask, best_of_by_prompt
from probeselect.policies.plans import FixedPlan, RoundPlan
from probeselect.policies.policy import Policy
from probeselect.policies.stopping import RoundsSoFar, StoppingRule

DRAWS = 256  # of n candidates, for every prompt
CANDIDATES, CUT = 5, 0.2  # of the paper's single cut, and its rung
PSP = (8, (0.25, 0.5), (4, 2))  # candidates, rungs and who goes on; ECCV 2026
Places = NDArray[np.intp]
Values = NDArray[np.floating[Any]]


class Draws:
    """Candidates of every prompt in D orders; the first n of an order are a draw of n, the next n the second round's.

    order: places [P, D, M] of candidates in the tables. prompts: [P], the rows of the tables that are here.
    """

    def __init__(
        self, scores: Mapping[int, ArrayLike], rewards: ArrayLike, order: Places, prompts: Places, dtype: Any
    ) -> None:
        self.prompts, self._order, self._dtype = prompts, order, dtype
        self._tables = {step: np.asarray(table)[prompts] for step, table in scores.items()}
        self._gathered: dict[int, Values] = {}
        self.rewards = self._in_order(np.asarray(rewards)[prompts])  # [P, D, M]

    @classmethod
    def at_random(
        cls, scores: Mapping[int, ArrayLike], rewards: ArrayLike, valid: Mask, most: int, draws: int, seed: int = 0
    ) -> "Draws":
        """Random orders of the prompts with at least `most` valid candidates, see `most_candidates`."""
        rows: Places = np.flatnonzero(valid.sum(1) >= most)
        luck = np.random.default_rng(seed).random((len(rows), draws, valid.shape[1]))
        luck[~np.broadcast_to(valid[rows, None], luck.shape)] = 2  # behind all others
        return cls(scores, rewards, np.argsort(luck, axis=2)[:, :, :most], rows, np.float32)

    def scores(self, step: int) -> Values:
        """[P, D, M], after a 0-based step."""
        if step not in self._gathered:
            self._gathered[step] = self._in_order(self._tables[step])
        return self._gathered[step]

    def _in_order(self, table: Any) -> Values:
        found: Values = np.take_along_axis(table[:, None], self._order, axis=2).astype(self._dtype)
        return found


def best_of(values: Values, k: int) -> Places:
    """Places [..., k] of the k largest along the last axis; of equals the earlier."""
    if k == 1:
        return values.argmax(-1)[..., None]
    if k >= values.shape[-1]:
        return np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    return np.argsort(-values, axis=-1, kind="stable")[..., :k]


def survivors(policy: Policy, steps: Sequence[int], n: int, draws: Draws, rounds: int = 1) -> Places:
    """Who comes through the rungs after these 0-based steps: places [P, D, W, h] in the order of the draws.

    Raises UsageError for a policy that keeps another number from draw to draw.
    """
    in_rounds = np.arange(rounds * n).reshape(rounds, n)
    left: Places = np.broadcast_to(in_rounds, (*draws.rewards.shape[:2], rounds, n))
    for index, step in enumerate(steps):
        count = getattr(policy, "count", None)
        if count is None:
            chosen = _one_by_one(policy, _at(draws.scores(step), left), index)
        elif (keep := count(left.shape[3], index)) < left.shape[3]:
            chosen = best_of(_at(draws.scores(step), left), keep)
        else:
            continue
        left = np.take_along_axis(left, chosen, axis=3)
    return left


def _one_by_one(policy: Policy, scores: Values, index: int) -> Places:
    """A policy that does more than count is asked about every draw."""
    flat = scores.reshape(-1, scores.shape[-1])
    chosen = [policy(torch.from_numpy(row.copy()), index) for row in flat]
    if len({len(each) for each in chosen}) != 1:
        name = type(policy).__name__
        raise UsageError(f"policy {name}: keeps another number from draw to draw; it cannot be replayed")
    return np.array(chosen, dtype=np.intp).reshape(*scores.shape[:-1], -1)


def _at(table: Values, places: Places) -> Values:
    """A table [P, D, M] at places [P, D, W, h]."""
    return np.take_along_axis(table[:, :, None], places, axis=3)


def replay(
    plan: FixedPlan,
    scores: Mapping[int, ArrayLike],
    rewards: ArrayLike,
    valid: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """What `plan` earns: the mean reward [P] of what it keeps; NaN for prompts with fewer than n candidates.

    scores: [P, N] after each 0-based step of the plan; higher is better, ties are broken at random.
    rewards: [P, N], of the finished pictures. Every draw is counted where there are no more than `draws` of them, else
    that many are made at random; the same seed makes the same ones, so that two plans of one n can be compared.
    Raises ValueError for a step without scores.
    """
    r = np.asarray(rewards, dtype=np.float64)
    v = np.ones(r.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if missing := [step for step in plan.steps if step not in scores]:
        raise ValueError(f"no scores after step {missing[0]}; there are some after {sorted(scores)}")
    counts = v.sum(axis=1)
    found = np.full(len(r), np.nan)
    for count in np.unique(counts[counts >= plan.n]).tolist():
        rows = np.flatnonzero(counts == count)
        drawn = _drawn(count, plan.n, draws, seed)  # [D, n]
        # Ties favour no place: each prompt's candidates are shuffled first.
        shuffled = [np.random.default_rng([seed, p]).permutation(np.flatnonzero(v[p])) for p in rows.tolist()]
        order = np.array([candidates[drawn] for candidates in shuffled])
        found[rows] = kept_rewards(plan, Draws(scores, r, order, rows, np.float64)).mean((1, 2))
    return found


def kept_rewards(plan: FixedPlan, draws: Draws) -> Values:
    """Rewards [P, D, k] of the best k that a plan finishes."""
    finished = _at(draws.rewards, survivors(plan, plan.steps, plan.n, draws))[:, :, 0]
    return np.take_along_axis(finished, best_of(finished, plan.k), axis=2)


def _drawn(candidates: int, n: int, draws: int, seed: int) -> Places:
    """Places [D, n] of n candidates drawn without replacement: all draws, or `draws` random ones."""
    if math.comb(candidates, n) <= draws:
        return np.array(list(itertools.combinations(range(candidates), n)), dtype=np.intp)
    rng = np.random.default_rng([seed, candidates])
    return np.argsort(rng.random((draws, candidates)), axis=1)[:, :n]


@dataclass(frozen=True)
class Paths:
    """What draws of candidates find, round after round."""

    so_far: RoundsSoFar  # arrays [P, D, W]
    worth: Values  # [P, D, W] reward of each round's champion
    reward: Values  # [P, D, W] mean reward of the best k of those who would be finished then
    first: int  # the first round, counted from 0, after which k candidates wait


def paths_of(one: RoundPlan, draws: Draws, rounds: int) -> Paths:
    """So many rounds on every draw, whatever a stopping rule would say."""
    left = survivors(one.plan, one.steps, one.n, draws, rounds)
    scores, rewards = _at(draws.scores(one.steps[-1]), left), _at(draws.rewards, left)  # [P, D, W, h]
    best, worth = scores[:, :, 0, :0], rewards[:, :, 0, :0]  # of those who would be finished, by falling score
    kth, kth_reward, means = [], [], []
    for w in range(rounds):
        best, worth = np.concatenate([best, scores[:, :, w]], axis=2), np.concatenate([worth, rewards[:, :, w]], axis=2)
        if best.shape[2] > 1:
            order = np.argsort(-best, axis=2, kind="stable")[:, :, : one.finish]
            best, worth = np.take_along_axis(best, order, axis=2), np.take_along_axis(worth, order, axis=2)
        enough = w >= one.first
        kth.append(best[:, :, one.k - 1] if enough else np.full(best.shape[:2], -np.inf, np.float32))
        kept = np.take_along_axis(worth, best_of(worth, one.k), axis=2)  # [P, D, k], fewer in the first rounds
        means.append(kept.mean(2))
        kth_reward.append(kept.min(2) if enough else np.full(best.shape[:2], np.nan))
    champion = best_of(scores, 1)
    first, its = (np.take_along_axis(table, champion, axis=3)[..., 0] for table in (scores, rewards))
    so_far = RoundsSoFar(first, np.stack(kth, 2), np.stack(kth_reward, 2), one.k)
    return Paths(so_far, its, np.stack(means, 2), one.first)


def stopped(paths: Paths, enough: Mask, rows: Floats) -> tuple[Floats, Floats]:
    """Reward and cost [P], means over draws, when each draw stops after the first round that is enough, or the last.

    enough: [P, D, W], of a stopping rule. rows: [W], what stopping after each round costs.
    """
    stop = enough.copy()
    stop[:, :, -1] = True
    at = stop.argmax(axis=2)  # [P, D]
    reward = np.take_along_axis(paths.reward, at[..., None], axis=2)[..., 0]
    return reward.mean(1, dtype=np.float64), rows[at].mean(1)


def enough_by(rule: StoppingRule, paths: Paths) -> Mask:
    """What a stopping rule says after each round of every draw: [P, D, W]."""
    return np.asarray(rule.enough(rule.measure(paths.so_far)))


def rows_by_round(one: RoundPlan, rounds: int, scoring_cost: float = 0.0) -> Floats:
    """[W]: what one prompt takes that stops after each round."""
    return np.array([one.rows(w + 1, scoring_cost) for w in range(rounds)], dtype=np.float64)


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
