"""SelectiveSampler: candidates of a prompt in, the pictures that are worth finishing out."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone, dtype_named, load_backbone
from probeselect.core.candidates import Candidate, candidates_of
from probeselect.core.errors import UsageError
from probeselect.core.rungs import check_apart, completed_steps, validate_rungs
from probeselect.core.stage import Scorer
from probeselect.evaluators.base import Evaluator, check_prompts
from probeselect.evaluators.function import as_evaluator
from probeselect.policies.named import check_together, schedule_for
from probeselect.policies.plans import Plan
from probeselect.policies.policy import Policy
from probeselect.policies.stopping import StoppingRule, UntilLikely
from probeselect.rollout.arguments import check_arguments
from probeselect.rollout.around import execution_device
from probeselect.rollout.batches import Batches
from probeselect.rollout.rollout import rollout
from probeselect.rollout.tally import Tally
from probeselect.scorers.table import load_scorer
from probeselect.select.events import Event, Progress
from probeselect.select.progress import StepsBar
from probeselect.select.results import Result
from probeselect.select.rounds import Options, Recording, Rounds

RUNGS = (0.2,)
LOG = logging.getLogger("probeselect")


class Run:
    """A run that is going on: iterate over its events, then ask for `results`.

    run = sampler.stream("a cat", n=5)
    for event in run:
        print(event.kind, event.candidate.seed)
    run.results[0].images

    """

    def __init__(self, rounds: Rounds, about: Mapping[str, str], closing: ExitStack) -> None:
        self._rounds, self._about, self._closing = rounds, about, closing
        self._events = rounds.events()
        self._results: list[Result] | None = None

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            return next(self._events)
        except BaseException:
            self._closing.close()
            raise

    def stop(self) -> None:
        """End the run after the step that is being computed, from any thread; what is finished by then is kept."""
        self._rounds.batches.stop()

    @property
    def results(self) -> list[Result]:
        """A result a prompt. Asked for before the end, it runs to the end first."""
        for _ in self:
            pass
        if self._results is None:
            self._results = self._rounds.results(self._about)
            for note in self._rounds.notes:
                LOG.warning(note)
        return self._results


class SelectiveSampler:
    """Runs a backbone's candidates up to a rung, scores them and finishes the best.

        sampler = SelectiveSampler("embedded")
        result = sampler("two dogs above a purple book", n=5, rungs=[0.2], num_inference_steps=20)
        result.images[0]

    Args:
        backbone: "embedded", "embedded-mmdit", a folder, a hub id, or any diffusers pipeline object.
        scorer: "embedded" (the shipped probe), a probe's folder or hub id, "fusion:PROBE", "preview:EVALUATOR",
            "attention", "random", a Scorer, or a function of a Stage that gives scores [N].
        batch_size: most candidates in one call of the pipeline; None means as many as fit, up to 32.
        tap: module path of the activation to study, for pipelines that are in no known family.
        evaluator_device, evaluator_dtype: of evaluators that are given by name, in the scorer or in a call; default:
            where the pipeline computes, in float32.

    Raises:
        UsageError: a name that is not known, or a scorer that does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Any = "embedded",
        scorer: str | Scorer | Callable[..., Any] = "embedded",
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
        self._evaluator = partial(
            as_evaluator, device=evaluator_device or execution_device(self.backbone.pipe),
            dtype=dtype_named(evaluator_dtype),
        )  # fmt: skip
        self._running: Run | None = None

    def __repr__(self) -> str:
        return f"<SelectiveSampler of {self.backbone.name}, scorer {self.scorer.name}>"

    @overload
    def __call__(
        self, prompt: str, n: int | None = None, k: int | None = None, rungs: Sequence[float] = RUNGS, **options: Any
    ) -> Result: ...

    @overload
    def __call__(
        self,
        prompt: Sequence[str],
        n: int | None = None,
        k: int | None = None,
        rungs: Sequence[float] = RUNGS,
        **options: Any,
    ) -> list[Result]: ...

    def __call__(
        self,
        prompt: str | Sequence[str],
        n: int | None = None,
        k: int | None = None,
        rungs: Sequence[float] = RUNGS,
        **options: Any,
    ) -> Result | list[Result]:
        """Generate n candidates a prompt and finish k of them; all arguments are those of `stream`.

        Returns:
            Result, or for a list of prompts a list of them.
        """
        self._running = run = self.stream(prompt, n, k, rungs, **options)
        results = run.results
        return results[0] if isinstance(prompt, str) else results

    def stop(self) -> None:
        """End the call that is going on, from another thread; it returns what is done by then."""
        if self._running is not None:
            self._running.stop()

    def stream(
        self,
        prompt: str | Sequence[str],
        n: int | None = None,
        k: int | None = None,
        rungs: Sequence[float] = RUNGS,
        *,
        policy: str | Policy | Plan = "topk",
        stop: StoppingRule | UntilLikely | None = None,
        diversity: float = 0.0,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        evaluators: Sequence[str | Evaluator | Callable[..., Any]] = (),
        previews: bool = False,
        record: Recording | None = None,
        progress: bool | Progress = True,
        **arguments: Any,
    ) -> Run:
        """The same as a call, event by event: what was scored, kept, stopped, finished, judged.

        Args:
            prompt: one prompt, or a list of them (then batches mix prompts).
            n: candidates of each prompt (default: the plan's, as many as `seeds`, or 5).
            k: how many of them to keep (default: the plan's, or 1). A plan may finish more: the first of
                `evaluators`, or without one the score, then says which k are the best.
            rungs: where candidates are scored, as fractions of the steps.
            policy: "topk", "halving", "all", a plan.json file, or a Policy.
            stop: when a prompt needs no more candidates: `Until(0.9, rounds=4)` goes on with fresh seeds, n at a time,
                until the kept pictures reach that reward by the first of `evaluators`; `UntilLikely(0.9, 0.8)` by the
                scores alone. Default: one round, or the rule of an adaptive plan.
            diversity: from 0 to 1, how much those who are kept should differ in their activations rather than score
                well; the best is kept always. Only the last rung asks.
            seed, seeds: candidate i of a prompt gets seed + i, or seeds[i].
            evaluators: judge the finished pictures (`rewards`, `reasons`): names, Evaluators, or functions of
                (pictures, prompts) that give rewards [N].
            previews: keep the decoded x0-prediction of every candidate at every rung.
            record: keeps activations and pictures as training data, and finishes a share of the stopped for it.
            progress: a bar on stderr, or a function of (steps done, steps planned).
            arguments: everything else goes to the pipeline untouched.

        Returns:
            Run: iterate over it for events, then ask for its `results`.

        Raises:
            UsageError: for arguments that cannot be; before any work is done.
        """
        n = len(seeds) if n is None and seeds is not None else n
        schedule = schedule_for(n, k, rungs, policy, stop)
        check_together(schedule, diversity, record is not None, bool(evaluators))
        if schedule.stop.rounds > 1 and seeds is not None and len(seeds) < schedule.most:
            raise UsageError(f"seeds: {len(seeds)} given, the rounds may take {schedule.most}; give seed, the first")
        candidates = candidates_of(prompt, schedule.most, seeds, seed)
        prompts = list(dict.fromkeys(candidate.prompt for candidate in candidates))
        judges = [self._evaluator(evaluator) for evaluator in evaluators]
        for one in (self.scorer, *judges):
            check_prompts(one, prompts)
        check_arguments(self.backbone, candidates, arguments)
        if judges and arguments.get("output_type") == "latent":
            raise UsageError("output_type = 'latent': evaluators need pictures; leave out one of the two")
        getattr(self.scorer, "check_rungs", lambda _: None)(self._true_rungs(schedule.rungs, arguments))
        closing = ExitStack()
        if progress is True:
            progress = closing.enter_context(StepsBar()).update
        tell = progress or (lambda done, planned: None)
        batches = Batches(self.backbone, candidates, arguments, self.batch_size, Tally(), tell, LOG.warning)
        about = {"model": self.backbone.name, "scorer": self.scorer.name, "policy": _name_of(policy)}
        options = Options(judges, diversity, previews, record)
        return Run(Rounds(batches, candidates, schedule, self.scorer, options), about, closing)

    def _true_rungs(self, rungs: Sequence[float], arguments: Mapping[str, Any]) -> list[float]:
        """The fractions that are met with so many steps, where the pipeline runs them all."""
        steps = arguments.get("num_inference_steps")
        if not rungs or not isinstance(steps, int) or "strength" in arguments:
            return list(rungs)
        if steps < 2:
            raise UsageError(f"num_inference_steps = {steps}: a rung needs at least 2 steps; use policy='all'")
        check_apart(rungs, steps)
        return [completed_steps(rung, steps) / steps for rung in rungs]

    def features(
        self, prompt: str, seeds: Sequence[int], rung: float = 0.2, *, tap: str | None = None, **arguments: Any
    ) -> Tensor:
        """The tapped conditional activations [N, C, H, W] at a rung, in the order of `seeds`."""
        taps = self.backbone.taps if tap is None else (self.backbone.tap(tap),)
        if not taps:
            raise UsageError("tap: this pipeline is in no known family; give tap='module.path'")
        candidates: list[Candidate] = candidates_of(prompt, None, seeds)
        stages = rollout(
            self.backbone, candidates, validate_rungs([rung]), taps=taps[:1], finish=False,
            batch_size=self.batch_size, **arguments,
        )  # fmt: skip
        return next(iter(stages)).maps[taps[0].name]


def _name_of(policy: object) -> str:
    return policy if isinstance(policy, str) else type(policy).__name__.lower()
