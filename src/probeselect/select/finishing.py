"""The end of a call: pictures of those who were finished, what evaluators say of them, and which are kept."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from probeselect.core.candidates import Candidate
from probeselect.evaluators.base import Evaluator, judged
from probeselect.policies.policy import best_first
from probeselect.rollout.stage import Stage, Tally
from probeselect.select.results import CandidateResult, Cost, Result

Records = Mapping[Candidate, CandidateResult]


def note_pictures(stage: Stage, records: Records) -> None:
    """Note the pictures of all who were finished, and what is wrong with them."""
    for candidate, picture, flags in zip(stage.candidates, stage.pictures or [], stage.flags, strict=True):
        record = records[candidate]
        record.image, record.completed_steps, record.flags = picture, stage.completed_steps, flags


def substitutes(chosen: Sequence[Candidate], records: Records) -> list[Candidate]:
    """Who is to be finished in place of those whose pictures are flagged: the next best of each prompt.

    Next best is who came furthest, then who scored best there. Those whose score was not a number come last, and the
    flagged never.
    """
    more = []
    for group in dict.fromkeys(c.group for c in chosen):
        mine = [c for c in records if c.group == group]
        wanted = sum(c.group == group for c in chosen)
        good = sum(records[c].image is not None and not records[c].flags for c in mine)
        waiting = [c for c in mine if records[c].image is None and records[c].completed_steps and not records[c].flags]
        waiting.sort(key=lambda c: _rank(records[c]), reverse=True)
        more += waiting[: max(wanted - good, 0)]
    return more


def _rank(record: CandidateResult) -> tuple[int, float]:
    score = record.scores[-1].score if record.scores else math.nan
    return record.completed_steps, -math.inf if math.isnan(score) else score


def evaluate(chosen: Sequence[Candidate], records: Records, evaluators: Sequence[Evaluator]) -> list[str]:
    """Note what the evaluators say of those chosen whose pictures are good; what is to be told of it."""
    good = [c for c in chosen if records[c].image is not None and not records[c].flags]
    pictures, prompts = [records[c].image for c in good], [c.prompt for c in good]
    notes = []
    for evaluator in evaluators if good else ():
        judgement = judged(evaluator, pictures, prompts)
        for candidate, reward, why in zip(good, judgement.rewards.tolist(), judgement.reasons, strict=True):
            records[candidate].rewards[evaluator.name] = reward
            if why:
                records[candidate].reasons[evaluator.name] = why
        if not judgement.rewards.isfinite().any():
            notes.append(f"Evaluator {evaluator.name} gave no reward to any picture.")
    return notes


def keep(
    chosen: Sequence[Candidate], most: int | None, records: Records, evaluators: Sequence[Evaluator]
) -> list[Candidate]:
    """At most so many of each prompt (None: as many as were chosen), best first.

    Good pictures come before flagged ones. Where more were finished, the first evaluator says which are best, and
    without one the order of `chosen` does.
    """
    kept = []
    for group in dict.fromkeys(c.group for c in chosen):
        mine = [c for c in chosen if c.group == group]
        instead = [c for c in records if c.group == group and records[c].image is not None and c not in mine]
        instead = sorted(instead, key=lambda c: _rank(records[c]), reverse=True)
        good = [c for c in mine if not records[c].flags]
        number = len(mine) if most is None else min(most, len(mine))
        if len(good) > number:
            good = _best([records[c].rewards for c in good], good, evaluators)
        elif len(good) < len(mine):
            good += [c for c in instead if not records[c].flags]
        kept += [*good, *(c for c in mine if records[c].flags)][:number]
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
    """A result a prompt, of the candidates that were begun; seconds are shared by the steps computed for each."""
    steps = max(tally.denoiser_rows, 1)
    results = []
    for group in dict.fromkeys(c.group for c in records):
        begun = {c: record for c, record in records.items() if c.group == group and record.completed_steps}
        rows = sum(tally.steps_of[c] for c in begun)
        by_module = sum((tally.rows_of.get(c, Counter()) for c in begun), Counter[str]())
        cost = Cost(
            denoiser_rows=rows,
            denoiser_rows_all=len(begun) * tally.total_steps,
            seconds=seconds * rows / steps,
            seconds_scoring=seconds_scoring * rows / steps,
            largest_wave=tally.largest_wave,
            wave_halvings=tally.wave_halvings,
            rows_by_module=dict(by_module),
            restarted=sum(c in tally.restarted for c in begun),
        )
        mine = list(begun.values())
        chosen = [records[c] for c in kept if c.group == group]
        results.append(Result(mine[0].prompt, mine, chosen, cost, decisions.get(group, []), list(tally.notes)))
    return results


def _best(
    rewards: Sequence[Mapping[str, float]], candidates: list[Candidate], evaluators: Sequence[Evaluator]
) -> list[Candidate]:
    if not evaluators:
        return candidates
    return [candidates[i] for i in best_first(torch.tensor([each[evaluators[0].name] for each in rewards]))]
