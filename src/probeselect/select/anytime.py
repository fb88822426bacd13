"""Goes on with fresh seeds, wave after wave, until a prompt's pictures are good enough.

Knows waves of whole calls and how their results are joined; does not know how one is run.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from probeselect.core.errors import UsageError
from probeselect.core.plain import plain
from probeselect.evaluators.base import Evaluator
from probeselect.policies.chances import Target
from probeselect.policies.plans import AdaptivePlan
from probeselect.policies.policy import Policy, best_first
from probeselect.select.results import CandidateResult, Cost, Result

WAVES = 4  # at most, where nothing is said

Once = Callable[[list[str], list[int], int], list[Result]]  # prompts, seeds, denoiser rows before -> a result each


def check_target(
    until: float | None, confidence: float | None, waves: int | None, policy: Policy, evaluators: Sequence[Any]
) -> Target | None:
    """What is good enough, if that was asked for. Raises UsageError for what does not go together."""
    if until is None:
        for name, value in (("confidence", confidence), ("waves", waves)):
            if value is not None:
                raise UsageError(f"{name} = {value:g}: needs until, the reward that is good enough")
        return None
    target = Target(until, confidence)
    if confidence is not None:
        if not isinstance(policy, AdaptivePlan) or policy.chances is None:
            raise UsageError("confidence: needs a plan of `plan --adaptive`, which says how likely a reward is")
        if waves is not None:
            raise UsageError(f"waves = {waves}: with a confidence the plan says how many")
    elif not evaluators:
        raise UsageError(f"until = {until:g}: needs an evaluator to judge finished pictures, or a confidence")
    if waves is not None and waves < 1:
        raise UsageError(f"waves = {waves}: must be at least 1")
    return target


def run_until(
    once: Once, prompts: Sequence[str], n: int, k: int, seed: int, waves: int, reward: float, evaluator: Evaluator
) -> list[Result]:
    """A result a prompt: the best k of as many waves of n candidates as it took for the k-th to reach `reward`.

    once: runs one wave. seed: the first; every wave takes the next n. Each result's `decisions` say, by wave, what was
    reached.
    """
    found: dict[int, Result] = {}
    going_on = list(range(len(prompts)))
    for wave in range(waves):
        seeds = [seed + wave * n + i for i in range(n)]
        before = sum(result.cost.denoiser_rows for result in found.values())
        for group, more in zip(going_on, once([prompts[group] for group in going_on], seeds, before), strict=True):
            joined = _joined(found.get(group), more, k, evaluator.name)
            reached = (
                joined.kept[k - 1].rewards.get(evaluator.name, math.nan) if len(joined.kept) == k else float("nan")
            )
            enough = reached >= reward
            last = "finish, no more waves" if wave == waves - 1 else "open another wave"
            told = {"wave": wave + 1, "seeds": seeds, "reward": reached, "until": reward}
            decision = plain({**told, "decision": "finish" if enough else last})
            found[group] = replace(joined, decisions=[*joined.decisions, decision])
        going_on = [group for group in going_on if found[group].decisions[-1]["decision"] == "open another wave"]
        if not going_on:
            break
    return [found[group] for group in range(len(prompts))]


def _joined(before: Result | None, more: Result, k: int, evaluator: str) -> Result:
    """Two waves of one prompt as one; of all who were kept the best k."""
    kept = [*(before.kept if before else []), *more.kept]
    rewards = torch.tensor([candidate.rewards.get(evaluator, math.nan) for candidate in kept])
    best = [kept[i] for i in best_first(rewards)][:k]
    for candidate in kept:
        candidate.kept = any(candidate is each for each in best)
    if before is None:
        return replace(more, kept=best)
    candidates: list[CandidateResult] = [*before.candidates, *more.candidates]
    a, b = before.cost, more.cost
    cost = Cost(
        denoiser_rows=a.denoiser_rows + b.denoiser_rows,
        denoiser_rows_all=a.denoiser_rows_all + b.denoiser_rows_all,
        seconds=a.seconds + b.seconds,
        seconds_scoring=a.seconds_scoring + b.seconds_scoring,
        largest_wave=max(a.largest_wave, b.largest_wave),
        wave_halvings=a.wave_halvings + b.wave_halvings,
        rows_by_module=dict(Counter(a.rows_by_module) + Counter(b.rows_by_module)),
        restarted=a.restarted + b.restarted,
    )
    notes = list(dict.fromkeys([*before.notes, *more.notes]))
    return Result(more.prompt, candidates, best, cost, [*before.decisions, *more.decisions], notes)
