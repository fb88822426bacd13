"""Record, replay, stop: runs a stock pipeline for a few candidates up to a rung, and resumes any of them exactly.

Knows one call of a pipeline. The outputs of every module of its loop are recorded per candidate. To resume candidates,
in any batch, the pipeline is called again with their own seeds; its modules are handed what was recorded, which costs
nothing, until it is used up. So the scheduler always sees what it saw before: its history, noise and step index are
right by construction, and `Player.check` proves it. At the rung the next call of a module either raises, which ends the
run, or, when previews are wanted, "coasts": the scheduler hands on the x0-prediction until the pipeline decodes it.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loop_modules import loop_modules
from probeselect.backbones.taps import X0, Tap, TapReader
from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.core.rungs import completed_steps
from probeselect.rollout.around import (
    Bar,
    counted_steps,
    execution_device,
    inner_pipeline,
    own_scheduler,
    planned_steps,
    quiet,
)
from probeselect.rollout.callbacks import CallbackError, Moment, watched
from probeselect.rollout.coasting import Coast, as_step_output, latents_of
from probeselect.rollout.digests import CallDigest, Digester
from probeselect.rollout.hooks import Forward, around_forward
from probeselect.rollout.noise import (
    NOT_REPRODUCIBLE,
    NoiseWatch,
    SharedNoise,
    own_noise,
    step_generators,
    stepped,
)
from probeselect.rollout.outputs import Watch, pictures_of
from probeselect.rollout.rows import CallRows
from probeselect.rollout.shared import BatchResult, Shared
from probeselect.rollout.tape import DoesNotFit, Player, Prefix, Tape
from probeselect.rollout.x0 import known_scheduler, x0_prediction


class _Stop(Exception):
    """Ends a pipeline run from within a module; never leaves this module."""


class BatchRun:
    """One run of the pipeline for the candidates of a batch; use once."""

    def __init__(self, shared: Shared, candidates: Sequence[Candidate], prefixes: Sequence[Prefix]) -> None:
        if len({prefix.completed_steps for prefix in prefixes}) != 1:
            raise UsageError("candidates of one batch must stand at the same step")
        self.shared, self.backbone = shared, shared.backbone
        self.inner = inner_pipeline(self.backbone.pipe, self.backbone.denoiser)  # which has the loop
        self.candidates, self.prefixes = candidates, prefixes
        seeds = [c.seed for c in candidates]
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.step_generators = step_generators(execution_device(self.backbone.pipe), seeds)
        self.digest = Digester()
        self.player = Player(prefixes, self.digest)
        self.tape: Tape | None = None
        self.tape_until = sys.maxsize  # steps
        self.steps = self.calls = self.total_steps = 0
        self.bar = Bar()
        self.goal: str = "end"  # or "rung", "first call", "replay", "picture"
        self.rung: float | None = None
        self.preview = self.wants_x0 = self.coasting = self.inside = False
        self.first_call: CallDigest | None = None
        self.computed: list[str] = []  # modules, in this step
        self.coast = Coast()
        self.last_step: Any = None
        self.x0: Tensor | None = None
        self.reader: TapReader | None = None
        self.watch = Watch(len(candidates))

    def to_rung(self, rung: float, taps: Sequence[Tap], preview: bool, arguments: Mapping[str, Any]) -> BatchResult:
        """Run to `rung`, record, read the taps, preview if asked to."""
        self.goal, self.rung, self.preview, self.wants_x0 = "rung", rung, preview, preview or X0 in taps
        if self.wants_x0:
            known_scheduler(self.inner.scheduler)
        n = len(self.candidates)
        self.tape = Tape(n, self.digest)
        with TapReader(self.backbone, taps) as reader:
            self.reader, reader.enabled = reader, False
            pictures, flags = self._call({**arguments, "output_type": "pil"} if preview else arguments)
            maps = reader.read(n)
            if X0 in taps and self.x0 is not None:
                maps[X0.name] = reader.latent_map(self.x0)
            embeddings = reader.prompt_embeddings(n) if taps else None
        self._keep_tape(self.steps)
        return BatchResult(self.steps, self.total_steps, pictures, maps, embeddings, flags, self.x0)

    def to_end(self, arguments: Mapping[str, Any], recorded_steps: int = 0) -> BatchResult:
        """Run to the finished pictures. recorded_steps: so many of the first steps are kept, to be looked at."""
        if recorded_steps:
            self.tape, self.tape_until = Tape(len(self.candidates), self.digest), recorded_steps
        pictures, flags = self._call(arguments)
        self._keep_tape(min(recorded_steps, self.steps))
        return BatchResult(self.steps, self.steps, pictures, {}, None, flags, latents_of(self.last_step))

    def _keep_tape(self, steps: int) -> None:
        if self.tape is None:
            return
        recorded, latents = self.tape.collect()
        for prefix, calls, digest in zip(self.prefixes, recorded, latents, strict=True):
            prefix.calls, prefix.latents, prefix.completed_steps = [*prefix.calls, *calls], digest, steps

    def to_first_call(self, arguments: Mapping[str, Any]) -> CallDigest:
        """What the loop's first module call is given; nothing of the loop is computed."""
        self.goal = "first call"
        self._call(arguments)
        if self.first_call is None:
            raise UsageError(f"model: {type(self.backbone.pipe).__name__} calls no module that can be followed")
        return self.first_call

    def replay(self, arguments: Mapping[str, Any]) -> None:
        """Go through what is recorded and compute nothing. Raises DoesNotFit if it is not what this run would meet."""
        self.goal = "replay"
        self._call(arguments)

    def to_picture(self, latents: Tensor, arguments: Mapping[str, Any]) -> Any:
        """What the pipeline makes of one candidate's final latents: recorded steps are replayed, others left out."""
        self.goal, self.preview, self.x0 = "picture", True, latents
        return (self._call(arguments)[0] or [None])[0]

    def _call(self, arguments: Mapping[str, Any]) -> tuple[list[Any] | None, list[list[str]]]:
        pipe, n = self.backbone.pipe, len(self.candidates)
        arguments = watched(arguments, self.shared.callbacks, self._moment)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(quiet(pipe))
            self.bar = stack.enter_context(counted_steps(self.inner))
            stack.enter_context(self.shared.memo.remembering(pipe))
            stack.enter_context(own_scheduler(self.inner, self._stepper))
            stack.enter_context(self.watch.decoding(self.inner))
            for name, module in loop_modules(pipe).items():
                stack.enter_context(around_forward(module, functools.partial(self._module, name)))
            noise = stack.enter_context(own_noise(execution_device(pipe), self.candidates[0].seed))
            try:
                output = pipe(generator=self.generators if n > 1 else self.generators[0], **arguments)
            except BaseException as error:
                pipe.maybe_free_model_hooks()
                if not isinstance(error, _Stop):
                    self._count()  # what failed in the middle of a step has been computed all the same
                    raise
                self._check_noise(noise)
                return None, [[] for _ in range(n)] if self.goal != "rung" else self.watch.flags_so_far()
            self._check_noise(noise)
            self._check_end(output)
            pictures = pictures_of(output, n)
            return pictures, self.watch.flags(output, pictures)

    def _check_end(self, output: Any) -> None:
        name = type(self.backbone.pipe).__name__
        if not self.steps:
            raise self._not_followed()
        if self.goal == "rung" and not self.coasting:
            raise UsageError(
                f"rungs: {self.rung:g} was not reached: {name} ended after {self.steps} steps; "
                "give a smaller rung, or more steps"
            )

    def _not_followed(self) -> UsageError:
        name = type(self.backbone.pipe).__name__
        return UsageError(f"model: {name} does not step its own scheduler, so it cannot be followed")

    def _check_noise(self, noise: NoiseWatch) -> None:
        if noise.used():
            if len(self.candidates) > 1:
                raise SharedNoise
            self.shared.notes(NOT_REPRODUCIBLE.format(type(self.backbone.pipe).__name__))

    def _moment(self) -> Moment:
        return Moment(self.coasting, self.steps <= self.player.steps, len(self.candidates))

    @property
    def _target(self) -> int | None:
        """Steps to complete in this run; None means all. Known for sure once the pipeline has begun to step."""
        if not self.steps:
            self.total_steps = planned_steps(self.inner, self.bar)
        if self.goal == "picture":
            return self.player.steps
        if self.rung is None:
            return None
        target, done = completed_steps(self.rung, self.total_steps), self.prefixes[0].completed_steps
        if target <= done:
            raise UsageError(
                f"rungs: {self.rung:g} falls on step {target} of {self.total_steps}, where the candidates have already "
                "been scored; put the rungs further apart"
            )
        return target

    def _module(self, name: str, usual: Forward, eager: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.inside:  # called by a module that is watched itself
                return usual(*args, **kwargs)
            self.calls += 1
            if self.goal == "first call":
                self.first_call = self.digest(args, kwargs, CallRows.of(args, kwargs))
                raise _Stop
            if self.bar.done and not self.steps:
                raise self._not_followed()
            target = self._target
            if target is not None and self.steps >= target:
                if not self.preview:
                    raise _Stop
                self.coasting = True
            if self.coasting:
                return self.coast.answer(name, args, kwargs)
            if self.player.playing:
                output = self.player.play(name, args, kwargs)
            else:
                self.player.check()
                if self.goal == "replay":
                    raise _Stop
                output = self._compute(name, usual, eager, args, kwargs, last=target == self.steps + 1)
            self.coast.note(name, args, kwargs, output)
            return output

        return forward

    def _compute(self, name: str, usual: Forward, eager: Forward, args: Any, kwargs: Any, last: bool) -> Any:
        reader = self.reader if last and name == self.backbone.family.denoiser else None
        self.shared.memory.before_call()
        self.inside = True
        try:
            if reader is not None:
                reader.enabled = True
                output = (eager if reader.taps else usual)(*args, **kwargs)
                reader.enabled = False
            else:
                output = usual(*args, **kwargs)
        finally:
            self.inside = False
        if name not in self.computed:
            self.computed.append(name)
        if self.tape is not None and self.steps < self.tape_until:
            self.tape.add(name, args, kwargs, output)
        return output

    def _stepper(self, scheduler: Any, usual: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(usual)

        def step(*args: Any, **kwargs: Any) -> Any:
            if self.coasting:
                return as_step_output(self.last_step, self.x0)
            target, given = self._target, signature.bind(*args, **kwargs).arguments
            if self.wants_x0 and target == self.steps + 1:
                self.x0 = x0_prediction(scheduler, given["model_output"], given["timestep"], given["sample"])
            self.last_step = self._with_noise(usual, args, kwargs, "generator" in signature.parameters)
            self._step_over(latents_of(self.last_step), target)
            return self.last_step

        return step

    def _with_noise(self, usual: Any, args: Any, kwargs: dict[str, Any], takes_generator: bool) -> Any:
        """A step whose noise is each candidate's own. One alone draws from global generators that have its seed."""
        given = kwargs.get("generator") is not None or kwargs.get("variance_noise") is not None
        if not takes_generator or given or len(self.candidates) == 1:
            return usual(*args, **kwargs)
        output, drew = stepped(usual, args, kwargs, self.step_generators)
        if drew:
            self.shared.notes(NOT_REPRODUCIBLE.format(type(self.backbone.pipe).__name__))
        return output

    def _step_over(self, latents: Any, target: int | None) -> None:
        self.steps += 1
        if self.player.steps >= self.steps:
            self.player.step(latents, self.steps)
        elif self.tape is not None and self.steps <= self.tape_until:
            self.tape.step(latents)
        self.watch.latents(latents)
        if self.computed:
            self.shared.memory.step_over()
            self._count()
            if self.shared.memory.remembers and self.player.steps:
                raise DoesNotFit("the denoiser remembers earlier calls")
        if target is None or self.steps < target:
            self.coast.step_over()
            if self.reader is not None:
                self.reader.clear()

    def _count(self) -> None:
        """The modules that have computed in this step are paid for."""
        computed, self.computed = self.computed, []
        if computed:
            try:
                self.shared.on_step(self.candidates, computed)
            except Exception as error:
                raise CallbackError from error
