"""Selective generation: start n candidates of every prompt, keep the best k, stop the others at a rung.

Knows the whole way from prompts to kept pictures, and what it cost. The parts are elsewhere: `rollout` runs
candidates, a `Scorer` scores them, a `Policy` decides.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import X0, Tap
from probeselect.collect.recorder import Recorder
from probeselect.core.candidates import Candidate, candidates_of
from probeselect.core.errors import UsageError
from probeselect.core.rungs import check_apart, completed_steps, validate_rungs
from probeselect.evaluators.base import Evaluator, check_prompts
from probeselect.policies.chances import Target
from probeselect.policies.diversity import check_diversity
from probeselect.policies.plan_file import check_schedule
from probeselect.policies.plans import AdaptivePlan, Plan
from probeselect.policies.policy import Policy
from probeselect.rollout.arguments import check_arguments
from probeselect.rollout.rollout import rollout
from probeselect.rollout.stage import Stage, Tally
from probeselect.scorers.scorers import Scorer, load_scorer
from probeselect.select.adaptive import AdaptiveRun, check_adaptive
from probeselect.select.anytime import WAVES, check_target, run_until
from probeselect.select.finishing import evaluate, keep, note_pictures, results_of, substitutes
from probeselect.select.fixed import FixedRun
from probeselect.select.results import CandidateResult, Result, RungScore

LOG = logging.getLogger("probeselect")


class SelectiveSampler:
    """Runs a backbone's candidates up to a rung, scores them and finishes the best.

    Args:
        backbone: "embedded", "embedded-mmdit", a folder, a hub id, or any diffusers pipeline object.
        scorer: "embedded" (the shipped probe), a probe's folder or hub id, "fusion:PROBE", "preview:EVALUATOR",
            "attention", "random", or a Scorer.
        batch_size: most candidates in one call of the pipeline; None means as many as fit.
        tap: module path of the activation to study, for pipelines that are in no known family.
        evaluator_device, evaluator_dtype: of the evaluator of a "preview:" or "fusion:" scorer; default: where the
            pipeline computes, in float32.
    """

    def __init__(
        self,
        backbone: Any = "embedded",
        scorer: str | Scorer = "embedded",
        *,
        batch_size: int | None = None,
        tap: str | Sequence[str] | None = None,
        evaluator_device: str | torch.device | None = None,
        evaluator_dtype: str | torch.dtype | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size = {batch_size}: must be at least 1")
        already_right = isinstance(backbone, Backbone) and tap is None
        self.backbone: Backbone = backbone if already_right else load_backbone(backbone, tap=tap)
        self.scorer = load_scorer(
            scorer, self.backbone, evaluator_device=evaluator_device, evaluator_dtype=evaluator_dtype
        )
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
        until: float | None = None,
        confidence: float | None = None,
        waves: int | None = None,
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
            until: a reward, in units of the first evaluator, that is good enough. A prompt whose k kept pictures do
                not all reach it gets n candidates more, with the next seeds, and so on.
            waves: how often at most a prompt gets n candidates (default: 4).
            confidence: with an adaptive plan, do not judge pictures until one is good enough, but stop as soon as the
                scores make `until` so likely (between 0 and 1), by the chances that the plan has learnt.
            arguments: everything else goes to the pipeline untouched.

        Returns:
            Result, or a list of them for a list of prompts.

        Raises:
            UsageError: for arguments that cannot be; before any work is done.
        """
        n, k, rungs, decide = check_schedule(len(seeds) if n is None and seeds is not None else n, k, rungs, policy)
        check_diversity(diversity)
        check_adaptive(decide, diversity, record is not None)
        target = check_target(until, confidence, waves, decide, evaluators)
        if target and seeds is not None:
            raise UsageError("seeds: are for one wave; with until give seed, the first of them")
        run = functools.partial(
            self._run, policy=decide, k=k, rungs=rungs, target=target, diversity=diversity, evaluators=evaluators,
            previews=previews, record=record, arguments=arguments,
        )  # fmt: skip
        candidates = candidates_of(prompt, n, seeds, seed)
        prompts = [c.prompt for c in candidates[::n]]
        for one in (self.scorer, *evaluators):
            check_prompts(one, list(dict.fromkeys(prompts)))
        check_arguments(self.backbone, candidates, arguments)
        if evaluators and arguments.get("output_type") == "latent":
            raise UsageError("output_type = 'latent': evaluators need pictures; leave out one of the two")
        getattr(self.scorer, "check_rungs", lambda _: None)(self._true_rungs(rungs, arguments))
        if target is None or confidence is not None:
            results = run(candidates, progress=progress)
        else:
            candidates_of(prompt, n * (waves or WAVES), seed=seed)  # all that may be opened, before any is

            def once(prompts: list[str], seeds: list[int], before: int) -> list[Result]:
                count = lambda done, planned: progress(before + done, before + planned)  # noqa: E731
                return run(candidates_of(prompts, None, seeds), progress=count)

            results = run_until(once, prompts, n, k, seed, waves or WAVES, target.reward, evaluators[0])
        return results[0] if isinstance(prompt, str) else results

    def _true_rungs(self, rungs: Sequence[float], arguments: Mapping[str, Any]) -> list[float]:
        """The fractions that are met with so many steps, where the pipeline runs them all."""
        steps = arguments.get("num_inference_steps")
        if not rungs or not isinstance(steps, int) or "strength" in arguments:
            return list(rungs)
        if steps < 2:
            raise UsageError(f"num_inference_steps = {steps}: a rung needs at least 2 steps; use policy='all'")
        check_apart(rungs, steps)
        return [completed_steps(rung, steps) / steps for rung in rungs]

    def _run(
        self,
        candidates: Sequence[Candidate],
        *,
        policy: Policy,
        k: int,
        rungs: Sequence[float],
        target: Target | None,
        diversity: float,
        evaluators: Sequence[Evaluator],
        previews: bool,
        record: Recorder | None,
        progress: Callable[[int, int], None],
        arguments: Mapping[str, Any],
    ) -> list[Result]:
        """Candidates of every prompt to their end, stopped or finished: a result a prompt."""
        began = time.perf_counter()
        records = {c: CandidateResult(c.prompt, c.seed) for c in candidates}
        taps = dict.fromkeys([*self.scorer.taps, *(record.taps if record else ()), *((X0,) if diversity else ())])
        tally, seconds_scoring = Tally(), 0.0
        notes: list[str] = []
        run: AdaptiveRun | FixedRun
        if isinstance(policy, AdaptivePlan):
            run = AdaptiveRun(policy, candidates, target)
        else:
            drawn = record.finishes(candidates) if record else ()
            run = FixedRun(policy, candidates, len(rungs), drawn, diversity)
        stages = run.stages(
            self.backbone,
            rungs,
            taps=tuple(taps),
            previews=previews or self.scorer.previews,
            batch_size=self.batch_size,
            tally=tally,
            progress=progress,
            say=LOG.warning,
            **arguments,
        )
        pictures: dict[Candidate, Any] = {}
        more: list[Candidate] = []
        for stage in stages:
            if stage.rung == 1:
                note_pictures(stage, records)
                pictures |= zip(stage.candidates, stage.pictures or (), strict=True)
                instead = substitutes(run.order(), records)
                stage.finish_too(instead)
                more += instead
                continue
            if record:
                record.note(stage)
            scoring_began = time.perf_counter()
            scores = self._scores(stage)
            seconds_scoring += time.perf_counter() - scoring_began
            _note_scores(stage, scores, run.scored(stage), records, previews)
            notes += _unscored(stage, scores, self.scorer.name)
            run.decide(stage, scores)
        notes += evaluate([*run.order(), *more], records, evaluators)
        kept = keep(run.order(), k if isinstance(policy, Plan) else None, records, evaluators)
        if record:
            record.write(candidates, pictures)
        for note in notes:
            LOG.warning(note)
        tally.notes += notes
        seconds = time.perf_counter() - began
        return results_of(records, kept, run.decisions, tally, seconds, seconds_scoring)

    def _scores(self, stage: Stage) -> Tensor:
        """[N]; of a candidate that has broken down, or whose preview was blacked out, not a number."""
        scores = self.scorer(stage).detach().float().cpu()
        flagged = [i for i, flags in enumerate(stage.flags) if flags]
        return scores.index_fill(0, torch.tensor(flagged), math.nan) if flagged else scores

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


def _note_scores(
    stage: Stage, scores: Tensor, running: set[Candidate], records: dict[Candidate, CandidateResult], previews: bool
) -> None:
    for i, candidate in enumerate(stage.candidates):
        record = records[candidate]
        record.completed_steps = stage.completed_steps
        if candidate in running:
            picture = stage.pictures[i] if previews and stage.pictures else None
            record.scores.append(RungScore(stage.rung, stage.completed_steps, scores[i].item(), picture))
            record.flags = list(stage.flags[i]) if stage.flags else []


def _unscored(stage: Stage, scores: Tensor, scorer: str) -> list[str]:
    """A sentence for every prompt none of whose candidates got a score."""
    groups: dict[int, list[int]] = {}
    for i, candidate in enumerate(stage.candidates):
        groups.setdefault(candidate.group, []).append(i)
    return [
        f"Scorer {scorer} gave no score to any candidate of {stage.candidates[mine[0]].prompt!r} at {stage.rung:.0%}: "
        "the first seeds go on."
        for mine in groups.values()
        if not scores[torch.tensor(mine)].isfinite().any()
    ]
