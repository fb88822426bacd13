"""Record, replay, stop: runs a stock pipeline for a few candidates up to a rung, and resumes any of them exactly.

Knows one call of a pipeline. The denoiser's raw outputs are recorded per candidate. To resume candidates, in any
batch, the pipeline is called again with their own seeds; it is handed the recorded outputs, which costs nothing, until
they are used up. So the scheduler always sees what it saw before: its history, noise and step index are right by
construction. At the rung the denoiser's next call either raises, which ends the run, or, when previews are wanted,
"coasts": the scheduler hands on the x0-prediction until the pipeline itself decodes it.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.backbones.families import prompt_keywords
from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import X0, Tap, TapReader
from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.core.rungs import completed_steps
from probeselect.sampling.encoders import EncoderMemo
from probeselect.sampling.hooks import Forward, around_forward
from probeselect.sampling.rows import Rows, join, split
from probeselect.sampling.x0 import x0_prediction

# Candidates bring their own seeds and prompts, and each is one picture.
RESERVED = (
    "prompt",
    "generator",
    "latents",
    "num_images_per_prompt",
    "num_images",
    "return_dict",
    "prompt_embeds",
)
# These draw noise in a step and take no generator: a candidate's noise could not be its own.
OWNERLESS_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")


@dataclass
class Prefix:
    """What is recorded of one candidate up to a rung, on the CPU: its denoiser outputs, call by call.

    Memory: denoiser calls x guidance parts x latent size x bytes of the dtype; for SD3.5 at 1024 px in bf16,
    1 MiB a step.
    """

    calls: list[Rows] = field(default_factory=list)
    completed_steps: int = 0

    @property
    def nbytes(self) -> int:
        return sum(call.nbytes for call in self.calls)


@dataclass(frozen=True)
class WaveResult:
    """One call of the pipeline for n candidates. At a rung `pictures` are previews (None unless asked for)."""

    completed_steps: int
    total_steps: int
    pictures: list[Any] | None
    maps: dict[str, Tensor]  # tap -> [n, C, H, W]
    prompt_embeddings: Tensor | None  # [n, D]


class _RungReached(Exception):
    """Ends a pipeline run from within its denoiser; never leaves this module."""


def check_arguments(backbone: Backbone, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for pipeline keywords that a wave sets itself or the pipeline does not take."""
    pipeline = type(backbone.pipe)
    taken = inspect.signature(pipeline.__call__).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for name in arguments:
        if name in RESERVED:
            raise UsageError(f"{name}: not to be given; every candidate brings its own prompt, seed and latents")
        if name not in taken and not (takes_any and name.startswith("callback")):  # which hide in SD's **kwargs
            raise UsageError(f"{name}: {pipeline.__name__} takes no such argument")
    scheduler = type(backbone.pipe.scheduler).__name__
    if scheduler in OWNERLESS_NOISE:
        raise UsageError(f"scheduler {scheduler}: draws noise that no seed owns; use DPMSolverMultistepScheduler")


def per_candidate(backbone: Backbone, candidates: Sequence[Candidate], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call: a text is repeated for every candidate, a list of texts is one per prompt."""
    spread = dict(arguments)
    for name in prompt_keywords(backbone.pipe):
        value = spread.get(name)
        if isinstance(value, str):
            spread[name] = [value] * len(candidates)
        elif isinstance(value, list | tuple):
            spread[name] = [value[candidate.group] for candidate in candidates]
    return {**spread, "prompt": [candidate.prompt for candidate in candidates]}


class WaveRun:
    """One run of the pipeline for the candidates of a wave; use once."""

    def __init__(
        self,
        backbone: Backbone,
        candidates: Sequence[Candidate],
        prefixes: Sequence[Prefix],
        *,
        memo: EncoderMemo,
        on_step: Callable[[int], None] = lambda rows: None,
    ) -> None:
        if len({prefix.completed_steps for prefix in prefixes}) != 1:
            raise UsageError("candidates of one wave must stand at the same step")
        self.backbone, self.candidates, self.prefixes = backbone, candidates, prefixes
        self.memo, self.on_step = memo, on_step
        self.generators = [torch.Generator("cpu").manual_seed(c.seed) for c in candidates]
        self.steps = self.call = self.total_steps = 0
        self.recorded: list[list[Rows]] = [[] for _ in candidates]
        self.coasting = False
        self.last_calls: list[Any] = []  # the denoiser's outputs within the current or last step
        self.last_step: Any = None
        self.x0: Tensor | None = None
        self.rung: float | None = None
        self.preview = self.wants_x0 = False
        self.reader: TapReader | None = None

    def to_rung(self, rung: float, taps: Sequence[Tap], preview: bool, arguments: Mapping[str, Any]) -> WaveResult:
        """Run to `rung`, record, read the taps, preview if asked to."""
        self.rung, self.preview, self.wants_x0 = rung, preview, preview or X0 in taps
        n = len(self.candidates)
        with TapReader(self.backbone, taps) as reader:
            self.reader, reader.enabled = reader, False
            pictures = self._call({**arguments, "output_type": "pil"} if preview else arguments)
            maps = reader.read(n)
            if X0 in taps and self.x0 is not None:
                maps[X0.name] = reader.latent_map(self.x0)
            embeddings = reader.prompt_embeddings(n) if taps else None
        for prefix, recorded in zip(self.prefixes, self.recorded, strict=True):
            prefix.calls.extend(recorded)
            prefix.completed_steps = self.steps
        return WaveResult(self.steps, self.total_steps, pictures, maps, embeddings)

    def to_end(self, arguments: Mapping[str, Any]) -> WaveResult:
        """Run to the finished pictures."""
        pictures = self._call(arguments)
        return WaveResult(self.steps, self.total_steps, pictures, {}, None)

    def _call(self, arguments: Mapping[str, Any]) -> list[Any] | None:
        pipe = self.backbone.pipe
        arguments = per_candidate(self.backbone, self.candidates, arguments)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(quiet(pipe))
            stack.enter_context(self.memo.remembering(pipe))
            stack.enter_context(self._own_scheduler())
            stack.enter_context(around_forward(self.backbone.denoiser, self._denoiser))
            try:
                output = pipe(generator=self.generators, **arguments)
            except _RungReached:
                pipe.maybe_free_model_hooks()
                return None
        if not self.steps:
            raise UsageError(f"model: {type(pipe).__name__} does not step its own scheduler, so it cannot be followed")
        return list(output.images)

    @property
    def _target(self) -> int | None:
        """Steps to complete in this run; None means all. Known once the pipeline has set its timesteps."""
        if not self.total_steps:
            scheduler = self.backbone.pipe.scheduler
            self.total_steps = getattr(self.backbone.pipe, "_num_timesteps", 0) or len(scheduler.timesteps)
        if self.rung is None:
            return None
        target, done = completed_steps(self.rung, self.total_steps), self.prefixes[0].completed_steps
        if target <= done:
            raise UsageError(
                f"rungs: {self.rung:g} falls on step {target} of {self.total_steps}, where the candidates have already "
                "been scored; put the rungs further apart"
            )
        return target

    def _denoiser(self, usual: Forward, eager: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            target = self._target
            if target is not None and self.steps >= target:
                if not self.preview:
                    raise _RungReached
                self.coasting = True
            if self.coasting:  # answer as in the last step, call for call
                self.last_calls.append(self.last_calls.pop(0))
                return self.last_calls[-1]
            output = self._replay_or_compute(usual, eager, args, kwargs, last=target == self.steps + 1)
            self.last_calls.append(output)
            self.call += 1
            return output

        return forward

    def _replay_or_compute(self, usual: Forward, eager: Forward, args: Any, kwargs: Any, last: bool) -> Any:
        n = len(self.candidates)
        if self.call < len(self.prefixes[0].calls):
            device = _device_of((args, kwargs))
            return join([prefix.calls[self.call] for prefix in self.prefixes], device=device)
        if last and self.reader is not None:
            self.reader.enabled = True
            output = (eager if self.reader.taps else usual)(*args, **kwargs)
            self.reader.enabled = False
        else:
            output = usual(*args, **kwargs)
        if self.rung is not None:
            for recorded, rows in zip(self.recorded, split(output, n, "cpu"), strict=True):
                recorded.append(rows)
        return output

    @contextmanager
    def _own_scheduler(self) -> Iterator[None]:
        """The pipeline runs on a copy of its scheduler, whose steps are counted; its own is never touched."""
        pipe = self.backbone.pipe
        original = pipe.scheduler
        scheduler = copy.deepcopy(original)
        scheduler.step = self._stepper(scheduler)
        pipe.scheduler = scheduler
        try:
            yield
        finally:
            pipe.scheduler = original

    def _stepper(self, scheduler: Any) -> Callable[..., Any]:
        usual = scheduler.step
        takes_generator = "generator" in inspect.signature(usual).parameters

        @functools.wraps(usual)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.coasting:
                return _as_step_output(self.last_step, self.x0)
            if takes_generator and kwargs.get("generator") is None:
                kwargs["generator"] = self.generators
            target = self._target
            if self.wants_x0 and target == self.steps + 1:
                self.x0 = x0_prediction(scheduler, model_output, timestep, sample)
            self.last_step = usual(model_output, timestep, sample, *args, **kwargs)
            self.steps += 1
            if self.call > len(self.prefixes[0].calls):  # computed, not replayed
                self.on_step(len(self.candidates))
            if target is None or self.steps < target:
                self.last_calls = []
                if self.reader is not None:
                    self.reader.clear()
            return self.last_step

        return step


def _device_of(nested: Any) -> torch.device:
    return next(leaf.device for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor))


def _as_step_output(like: Any, latents: Tensor | None) -> Any:
    """A scheduler output of the same form whose every latent is `latents`."""
    if isinstance(like, tuple):
        return tuple(latents for _ in like)
    fields = {name: latents for name, value in like.items() if isinstance(value, Tensor)}
    return type(like)(**fields)


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar: ours counts all waves."""
    found = pipe.__dict__.get("_progress_bar_config")
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if found is None:
            pipe.__dict__.pop("_progress_bar_config", None)  # a pipeline of pipelines never sets it
        else:
            pipe._progress_bar_config = found
