"""The end of a run: substitutes for pictures that went wrong, which ones are kept, and what it all cost."""

import math
from collections.abc import Mapping, Sequence

import torch

from probeselect.core.candidates import Candidate
from probeselect.evaluators.base import Evaluator, judged
from probeselect.policies.policy import best_first
from probeselect.rollout.tally import Tally
from probeselect.select.records import CandidateResult, Cost, Decision
from probeselect.select.results import Result

Records = Mapping[Candidate, CandidateResult]


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
            good = _best(good, records, evaluators)
        elif len(good) < len(mine):
            good += [c for c in instead if not records[c].flags]
        kept += [*good, *(c for c in mine if records[c].flags)][:number]
    for candidate in kept:
        records[candidate].kept = True
    return kept


def results_of(
    records: Records,
    kept: Sequence[Candidate],
    decisions: Mapping[int, Sequence[Decision]],
    tally: Tally,
    seconds: float,
    seconds_scoring: float,
    about: Mapping[str, str],
) -> list[Result]:
    """A result a prompt, of the candidates that were begun; seconds are shared by the steps computed for each."""
    results = []
    for group in dict.fromkeys(c.group for c in records):
        everyone = [c for c in records if c.group == group]
        begun = [records[c] for c in everyone if records[c].completed_steps]
        cost = Cost.of(tally, everyone, len(begun), seconds, seconds_scoring)
        chosen, made = [records[c] for c in kept if c.group == group], list(decisions.get(group, ()))
        results.append(Result(everyone[0].prompt, begun, chosen, cost, made, list(tally.notes), about))
    return results


def _best(candidates: list[Candidate], records: Records, evaluators: Sequence[Evaluator]) -> list[Candidate]:
    if not evaluators:
        return candidates
    rewards = [records[c].rewards.get(evaluators[0].name, math.nan) for c in candidates]
    return [candidates[i] for i in best_first(torch.tensor(rewards))]
