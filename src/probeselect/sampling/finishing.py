"""The end of a call: pictures of those who were finished, what evaluators say of them, and which are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from probeselect.core.candidates import Candidate
from probeselect.core.policies import best_first
from probeselect.evaluators.base import Evaluator, judge
from probeselect.sampling.results import CandidateResult, Cost, Result
from probeselect.sampling.rollout import Stage, Tally

Records = Mapping[Candidate, CandidateResult]


def finish(stage: Stage, chosen: Sequence[Candidate], records: Records, evaluators: Sequence[Evaluator]) -> None:
    """Note the pictures of all who were finished, and what the evaluators say of those who were chosen."""
    for candidate, picture in zip(stage.candidates, stage.pictures or [], strict=True):
        records[candidate].image, records[candidate].completed_steps = picture, stage.completed_steps
    pictures, prompts = [records[c].image for c in chosen], [c.prompt for c in chosen]
    for evaluator in evaluators:
        features, rewards = judge(evaluator, pictures, prompts)
        tell = getattr(evaluator, "reasons", None)
        reasons = tell(features, prompts) if tell else [[] for _ in prompts]
        for candidate, reward, why in zip(chosen, rewards.tolist(), reasons, strict=True):
            records[candidate].rewards[evaluator.name] = reward
            if why:
                records[candidate].reasons[evaluator.name] = why


def keep(
    chosen: Sequence[Candidate], most: int | None, records: Records, evaluators: Sequence[Evaluator]
) -> list[Candidate]:
    """At most so many of each prompt (None: all), best first. Where more were finished, the first evaluator says which
    are best, and without one the order of `chosen` does."""
    by_prompt: dict[int, list[Candidate]] = {}
    for candidate in chosen:
        by_prompt.setdefault(candidate.group, []).append(candidate)
    kept = []
    for mine in by_prompt.values():
        if most is not None and len(mine) > most:
            mine = _best([records[c].rewards for c in mine], mine, evaluators)[:most]
        kept += mine
    for candidate in kept:
        records[candidate].kept = True
    return kept


def results_of(
    records: Records,
    kept: Sequence[Candidate],
    decisions: Mapping[int, list[dict[str, Any]]],
    tally: Tally,
    seconds: float,
    seconds_scoring: float,
) -> list[Result]:
    """A result a prompt, of the candidates that were begun; seconds are shared by the steps that each has taken."""
    steps = max(sum(record.completed_steps for record in records.values()), 1)
    results = []
    for group in dict.fromkeys(c.group for c in records):
        mine = [record for c, record in records.items() if c.group == group and record.completed_steps]
        rows = sum(record.completed_steps for record in mine)
        cost = Cost(
            denoiser_rows=rows,
            denoiser_rows_all=len(mine) * tally.total_steps,
            seconds=seconds * rows / steps,
            seconds_scoring=seconds_scoring * rows / steps,
            largest_wave=tally.largest_wave,
            wave_halvings=tally.wave_halvings,
        )
        chosen = [records[c] for c in kept if c.group == group]
        results.append(Result(mine[0].prompt, mine, chosen, cost, decisions.get(group, [])))
    return results


def _best(
    rewards: Sequence[Mapping[str, float]], candidates: list[Candidate], evaluators: Sequence[Evaluator]
) -> list[Candidate]:
    if not evaluators:
        return candidates
    return [candidates[i] for i in best_first(torch.tensor([each[evaluators[0].name] for each in rewards]))]
