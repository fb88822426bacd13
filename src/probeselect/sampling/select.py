"""Selective generation: start n candidates of every prompt, keep the best k, stop the others at a rung.

Knows the whole way from prompts to kept pictures, and what it cost. The parts are elsewhere: `rollout` runs
candidates, a `Scorer` scores them, a `Policy` decides.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import X0, Tap
from probeselect.core.candidates import Candidate, candidates_of
from probeselect.core.diversity import check_diversity, spread_out
from probeselect.core.errors import UsageError
from probeselect.core.policies import AdaptivePlan, Plan, Policy, best_first, check_schedule
from probeselect.core.rungs import validate_rungs
from probeselect.evaluators.base import Evaluator, check_prompts, judge
from probeselect.sampling.adaptive import AdaptiveRun, check_adaptive
from probeselect.sampling.recording import Recorder
from probeselect.sampling.results import CandidateResult, Cost, Result, RungScore
from probeselect.sampling.rollout import Stage, Tally, rollout
from probeselect.sampling.scorers import Scorer, load_scorer


class SelectiveSampler:
    """Runs a backbone's candidates up to a rung, scores them and finishes the best.

    Args:
        backbone: "embedded", "embedded-mmdit", a folder, a hub id, or any diffusers pipeline object.
        scorer: "embedded" (the shipped probe), a probe's folder or hub id, "fusion:PROBE", "preview:EVALUATOR",
            "attention", "random", or a Scorer.
        batch_size: most candidates in one call of the pipeline; None means as many as fit.
        tap: module path of the activation to study, for pipelines that are in no known family.
    """

    def __init__(
        self,
        backbone: Any = "embedded",
        scorer: str | Scorer = "embedded",
        *,
        batch_size: int | None = None,
        tap: str | Sequence[str] | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size = {batch_size}: must be at least 1")
        already_right = isinstance(backbone, Backbone) and tap is None
        self.backbone: Backbone = backbone if already_right else load_backbone(backbone, tap=tap)
        self.scorer = load_scorer(scorer, self.backbone)
        self.batch_size = batch_size

    def __call__(
        self,
        prompt: str | Sequence[str],
        n: int | None = None,
        k: int | None = None,
        rungs: Sequence[float] = (0.2,),
        *,
        policy: str | Policy = "topk",
        diversity: float = 0.0,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        evaluators: Sequence[Evaluator] = (),
        previews: bool = False,
        record: Recorder | None = None,
        progress: Callable[[int, int], None] = lambda done, planned: None,
        **arguments: Any,
    ) -> Any:
        """Generate n candidates a prompt and finish k of them.

        Args:
            prompt: one prompt, or a list of them (then the result is a list, and waves mix prompts).
            n: candidates of each prompt (default: the plan's, as many as `seeds`, or 5).
            k: how many of them to keep (default: the plan's, or 1). A plan may finish more: the first of
                `evaluators`, or without one the score, then says which k are the best.
            rungs: where candidates are scored, as fractions of the steps.
            policy: "topk", "halving", "all", a plan.json file, or a Policy.
            diversity: from 0 to 1, how much those who are kept should differ in their activations rather than score
                well; the best is kept always. Only the last rung asks.
            seed, seeds: candidate i of a prompt gets seed + i, or seeds[i].
            evaluators: judge the finished pictures (`rewards`, `reasons`).
            previews: keep the decoded x0-prediction of every candidate at every rung.
            record: keeps activations and pictures as training data, and finishes a share of the stopped for it.
            arguments: everything else goes to the pipeline untouched.

        Returns:
            Result, or a list of them for a list of prompts.

        Raises:
            UsageError: for arguments that cannot be; before any work is done.
        """
        began = time.perf_counter()
        n, k, rungs, decide = check_schedule(len(seeds) if n is None and seeds is not None else n, k, rungs, policy)
        check_diversity(diversity)
        check_adaptive(decide, diversity, record is not None)
        candidates = candidates_of(prompt, n, seeds, seed)
        prompts = list(dict.fromkeys(c.prompt for c in candidates))
        for one in (self.scorer, *evaluators):
            check_prompts(one, prompts)
        getattr(self.scorer, "check_rungs", lambda _: None)(rungs)
        records = {c: CandidateResult(c.prompt, c.seed) for c in candidates}
        drawn = record.finishes(candidates) if record else set()
        taps = dict.fromkeys([*self.scorer.taps, *(record.taps if record else ()), *((X0,) if diversity else ())])
        tally, seconds_scoring = Tally(), 0.0
        adaptive = AdaptiveRun(decide, candidates) if isinstance(decide, AdaptivePlan) else None
        stages = (adaptive.stages if adaptive else functools.partial(rollout, candidates=candidates))(
            self.backbone,
            rungs=rungs,
            taps=tuple(taps),
            previews=previews or self.scorer.previews,
            batch_size=self.batch_size,
            tally=tally,
            progress=progress,
            **arguments,
        )
        order = list(candidates)
        for index, stage in enumerate(stages):
            if stage.rung == 1:
                _finish(stage, order, records, evaluators)
                order = _kept(order, k if isinstance(decide, Plan) else len(order), records, evaluators)
                if record:
                    record.write(candidates, dict(zip(stage.candidates, stage.pictures or (), strict=True)))
                continue
            if record:
                record.note(stage)
            scoring_began = time.perf_counter()
            scores = self.scorer(stage).detach().float().cpu()
            seconds_scoring += time.perf_counter() - scoring_began
            _note_scores(stage, scores, set(stage.candidates if adaptive else order), records, previews)
            if adaptive:
                order = adaptive.decide(stage, scores)
                continue
            spread = diversity if index == len(rungs) - 1 else 0.0
            order = _decide(stage, scores, set(order), drawn, decide, index, spread)
        seconds = time.perf_counter() - began
        results = [
            self._result(
                group,
                [c for c in candidates if c.group == group and records[c].completed_steps],
                order,
                records,
                tally,
                seconds,
                seconds_scoring,
                adaptive.decisions[group] if adaptive else [],
            )
            for group in range(candidates[-1].group + 1)
        ]
        return results[0] if isinstance(prompt, str) else results

    def features(
        self,
        prompt: str,
        seeds: Sequence[int],
        rung: float = 0.2,
        *,
        tap: str | None = None,
        **arguments: Any,
    ) -> Tensor:
        """The tapped conditional activations [N, C, H, W] at a rung, in the order of `seeds`."""
        taps = self.backbone.taps if tap is None else (Tap.parse(tap, self.backbone.family),)
        if not taps:
            raise UsageError("tap: this pipeline is in no known family; give tap='module.path'")
        stages = rollout(
            self.backbone,
            candidates_of(prompt, None, seeds),
            validate_rungs([rung]),
            taps=taps[:1],
            finish=False,
            batch_size=self.batch_size,
            **arguments,
        )
        return next(iter(stages)).maps[taps[0].name]

    def _result(
        self,
        group: int,
        candidates: list[Candidate],
        order: list[Candidate],
        records: dict[Candidate, CandidateResult],
        tally: Tally,
        seconds: float,
        seconds_scoring: float,
        decisions: list[dict[str, Any]],
    ) -> Result:
        mine = [records[c] for c in candidates]
        kept = [records[c] for c in order if c.group == group]
        share = sum(record.completed_steps for record in mine) / max(
            sum(r.completed_steps for r in records.values()), 1
        )
        cost = Cost(
            denoiser_rows=sum(record.completed_steps for record in mine),
            denoiser_rows_all=len(mine) * tally.total_steps,
            seconds=seconds * share,
            seconds_scoring=seconds_scoring * share,
            largest_wave=tally.largest_wave,
            wave_halvings=tally.wave_halvings,
        )
        return Result(mine[0].prompt, mine, kept, cost, decisions)


def _note_scores(
    stage: Stage, scores: Tensor, running: set[Candidate], records: dict[Candidate, CandidateResult], previews: bool
) -> None:
    for i, candidate in enumerate(stage.candidates):
        record = records[candidate]
        record.completed_steps = stage.completed_steps
        if candidate in running:
            picture = stage.pictures[i] if previews and stage.pictures else None
            record.scores.append(RungScore(stage.rung, stage.completed_steps, scores[i].item(), picture))


def _decide(
    stage: Stage,
    scores: Tensor,
    running: set[Candidate],
    drawn: set[Candidate],
    policy: Policy,
    index: int,
    diversity: float,
) -> list[Candidate]:
    """Ask the policy prompt by prompt about those who run (with diversity: how many are to go on).

    Returns who goes on, best first in each prompt; `drawn` go on whatever becomes of them.
    """
    positions: dict[int, list[int]] = {}
    for i, candidate in enumerate(stage.candidates):
        if candidate in running:
            positions.setdefault(candidate.group, []).append(i)
    going_on = []
    for members in positions.values():
        mine = torch.tensor(members)
        chosen = policy(scores[mine], index)
        if diversity:
            maps = [tap[mine.to(tap.device)] for tap in stage.maps.values()]
            chosen = spread_out(scores[mine], maps, len(chosen), diversity)
        going_on += [members[i] for i in chosen]
    stage.keep([*going_on, *(i for i, candidate in enumerate(stage.candidates) if candidate in drawn)])
    return [stage.candidates[i] for i in going_on]


def _finish(
    stage: Stage,
    chosen: Sequence[Candidate],
    records: dict[Candidate, CandidateResult],
    evaluators: Sequence[Evaluator],
) -> None:
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


def _kept(
    chosen: Sequence[Candidate],
    most: int,
    records: dict[Candidate, CandidateResult],
    evaluators: Sequence[Evaluator],
) -> list[Candidate]:
    """At most so many of each prompt, best first; where more were finished, the first evaluator says which are best."""
    by_prompt: dict[int, list[Candidate]] = {}
    for candidate in chosen:
        by_prompt.setdefault(candidate.group, []).append(candidate)
    kept = []
    for mine in by_prompt.values():
        if len(mine) > most and evaluators:
            rewards = torch.tensor([records[c].rewards[evaluators[0].name] for c in mine])
            mine = [mine[i] for i in best_first(rewards)]
        kept += mine[:most]
    for candidate in kept:
        records[candidate].kept = True
    return kept
