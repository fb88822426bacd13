"""What is measured of one built model: parts of a step, whole runs, where the time goes, memory."""

import functools
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from true_models import RUNG, Model, N, untrained_scorer

from probeselect.backbones.loading import load_backbone
from probeselect.backbones.taps import X0
from probeselect.core.candidates import Candidate, candidates_of
from probeselect.core.rungs import completed_steps
from probeselect.diagnostics.bench import Paired, paired
from probeselect.rollout.digests import Digester
from probeselect.rollout.rollout import Tally, rollout
from probeselect.rollout.rows import CallRows
from probeselect.select.sampler import SelectiveSampler

WORDS = "a cat", "a dog", "two boats", "a red car", "an old tree", "a fish", "the moon", "a bowl"
Row = dict[str, Any]


class Measures:
    """The rows of one model, in order: `for row in Measures(model, pipe, "cuda", repeats=3).rows(): ...`

    prompts: in the shared batches. Rows that there is no time for say so in `why`.
    """

    def __init__(self, model: Model, pipe: Any, device: str, repeats: int, prompts: int = len(WORDS)) -> None:
        self.model, self.pipe, self.device, self.repeats = model, pipe, device, repeats
        self.prompts = [WORDS[i % len(WORDS)] for i in range(prompts)]
        self.ends = time.perf_counter() + model.seconds
        size = {"height": model.pixels, "width": model.pixels}
        self.arguments = {**model.arguments, **size, "num_inference_steps": model.steps}
        self.backbone = load_backbone(pipe)
        taps, self.tally = (*self.backbone.taps, X0), Tally()
        self.five, self.one = candidates_of(WORDS[0], N), candidates_of(WORDS[0], 1)
        to_rung = rollout(self.backbone, self.five, [RUNG], taps=taps, tally=self.tally, **self.arguments)
        self.stage = next(iter(to_rung))  # of five real candidates, which wait there
        self.sampler = SelectiveSampler(
            self.backbone, untrained_scorer(model.name, self.backbone, self.stage), batch_size=model.wave
        )
        self.step_seconds: dict[int, float] = {}  # number of candidates -> one step of all of them
        self.decode_seconds: dict[int, float] = {}
        self.peaks: dict[str, int] = {}

    def rows(self) -> Iterator[Row]:
        with torch.no_grad():
            yield from self._parts()
        yield from self._resumed()
        yield from self._one_prompt()
        yield from self._memory()
        yield from self._where()
        yield from self._shared_waves()

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _time(self, *tasks: Callable[[], Any], needs: float, warm: bool = False) -> Paired | None:
        """None where there is no time for a round; `needs`: its seconds, 0 if not known. `warm`: needs no warm-up."""
        possible = int((self.ends - time.perf_counter()) / needs) - (not warm) if needs else self.repeats
        if possible < 1:
            return None
        return paired(min(self.repeats, possible), *tasks, clock=self.clock, warm_up=not warm)

    def _row(
        self, what: str, times: Paired | None, task: int = 0, reference: int = 1, limit: float | None = None
    ) -> Row:
        if times is None:
            return {
                "what": what,
                "ratio": None,
                "limit": limit,
                "why": "there was no time left; give more by --seconds",
            }
        ratios = [each[task] / each[reference] for each in times.rounds]
        return {
            "what": what, "ratio": times.ratio(task, reference), "limit": limit, "lowest": min(ratios),
            "highest": max(ratios), "rounds": len(ratios), "seconds": times.seconds(task),
            "reference_seconds": times.seconds(reference),
        }  # fmt: skip

    # What people call

    def _stock(self, candidates: list[Candidate]) -> None:
        """The stock pipeline for all candidates, in calls of one wave."""
        for start in range(0, len(candidates), self.model.wave):
            part = candidates[start : start + self.model.wave]
            generators = [torch.Generator("cpu").manual_seed(c.seed) for c in part]
            self.pipe([c.prompt for c in part], generator=generators, **self.arguments)

    def _select(self, prompts: list[str]) -> None:
        self.sampler(prompts, N, 1, [RUNG], **self.arguments)

    # Parts of a step

    def _denoiser_call(self, candidates: list[Candidate]) -> tuple[Any, Any]:
        """What the pipeline gives its denoiser in the first step."""

        class Caught(Exception):
            pass

        caught: list[Any] = []

        def catch(_: Any, args: Any, kwargs: Any) -> None:
            caught.append((args, kwargs))
            raise Caught

        handle = self.backbone.denoiser.register_forward_pre_hook(catch, with_kwargs=True)
        with suppress(Caught):
            self._stock(candidates)
        handle.remove()
        return caught[0]

    def _step(self, call: tuple[Any, Any]) -> Any:
        output = self.backbone.denoiser(*call[0], **call[1])
        return output[0] if isinstance(output, tuple) else output.sample

    def _decode(self, n: int) -> Callable[[], Any]:
        """Decodes n latents to pictures, as the pipeline does."""
        vae, side = self.pipe.vae, self.model.pixels // self.pipe.vae_scale_factor
        shape = n, vae.config.latent_channels, side, side
        latents = torch.randn(shape, dtype=vae.dtype).to(self.device)

        def decode() -> Any:
            pixels = vae.decode(latents, return_dict=False)[0]
            return self.pipe.image_processor.postprocess(pixels, output_type="pil")

        _check_finite(vae.decode(latents[:1], return_dict=False)[0], f"{self.model.name}: autoencoder")
        return decode

    def _parts(self) -> Iterator[Row]:
        five, one = self._denoiser_call(self.five), self._denoiser_call(self.one)
        _check_finite(self._step(one), f"{self.model.name}: denoiser")
        rows = CallRows.of(*five)

        def read_and_score() -> None:
            for tap, maps in self.stage.maps.items():
                if tap != X0.name:  # a reader copies the tap's output, all rows of it
                    maps.repeat(rows.count // N, 1, 1, 1)
            self.sampler.scorer(self.stage)

        tasks = [lambda: self._step(five), lambda: self._step(one), self._decode(N), self._decode(1), read_and_score]
        times = self._time(*tasks, lambda: Digester()(*five, rows).collected(), needs=0)
        assert times is not None
        self.step_seconds = {N: times.seconds(0), 1: times.seconds(1)}
        self.decode_seconds = {N: times.seconds(2), 1: times.seconds(3)}
        yield self._row("digest of a denoiser call's inputs, over the step", times, 5, 0, limit=0.005)
        yield self._row("reading the tap, projection and probe for five, over a step of five", times, 4, 0)
        yield self._row("previews of five, over a step of five", times, 2, 0)
        fifth = Paired([[N * each[1], each[0]] for each in times.rounds])
        yield self._row("a step of one, over a fifth of a step of five", fifth)
        alone = "5 -> 1, one prompt: what steps and decoding alone add up to"
        yield {"what": alone, "ratio": self._bound(), "limit": None}

    def _bound(self) -> float:
        """(early r5 + late r1 + d1) / (steps r5 + d5): r of a step, d of decoding, for five and for one."""
        steps, early = self.model.steps, completed_steps(RUNG, self.model.steps)
        ours = early * self.step_seconds[N] + (steps - early) * self.step_seconds[1] + self.decode_seconds[1]
        return ours / self._seconds_of(N)

    def _seconds_of(self, n: int) -> float:
        return self.model.steps * self.step_seconds[n] + self.decode_seconds[n]

    # Whole runs

    def _resumed(self) -> Iterator[Row]:
        waiting = [rollout(self.backbone, self.one, [RUNG], **self.arguments) for _ in range(self.repeats + 1)]
        for stages in waiting:
            next(stages)
        tasks = [lambda: next(waiting.pop()), lambda: self._stock(self.one)]
        times = self._time(*tasks, needs=2 * self._seconds_of(1))
        yield self._row("a kept candidate resumed, over run from the start", times)

    def _one_prompt(self) -> Iterator[Row]:
        tasks = [
            self._watched("ours", lambda: self._select(self.prompts[:1])),
            self._watched("stock", lambda: self._stock(self.five)),
            lambda: self._stock(self.one),
        ]
        times = self._time(*tasks, needs=(1 + self._bound()) * self._seconds_of(N) + self._seconds_of(1))
        yield self._row("5 -> 1, one prompt, over one call of five", times, limit=0.39)
        singly = times and Paired([[each[0], N * each[2]] for each in times.rounds])
        yield self._row("5 -> 1, one prompt, over five calls of one (five times one of them)", singly)

    def _shared_waves(self) -> Iterator[Row]:
        everyone = candidates_of(self.prompts, N)
        needs = len(self.prompts) * self._seconds_of(N) * (1 + self._bound())
        times = self._time(lambda: self._select(self.prompts), lambda: self._stock(everyone), needs=needs, warm=True)
        wave = min(self.model.wave, len(everyone))
        yield self._row(
            f"5 -> 1, {len(self.prompts)} prompts in shared batches, over calls of {wave}", times, limit=0.39
        )

    def _where(self) -> Iterator[Row]:
        """What is outside of denoiser, decoder and text encoders: replay, digests, scheduler, scoring."""
        if self.ends - time.perf_counter() < 2 * self._seconds_of(N):
            return
        tasks = {"ours": lambda: self._select(self.prompts[:1]), "stock": lambda: self._stock(self.five)}
        for name, task in tasks.items():
            began = self.clock()
            with stopwatch(self.pipe, self.backbone.denoiser, self.clock) as seconds:
                task()
            whole = self.clock() - began
            rest = whole - sum(seconds.values())
            parts = {part: round(each / whole, 4) for part, each in seconds.items()}
            yield {
                "what": f"share of a run outside of denoiser, decoder and text encoders: {name}", "ratio": rest / whole,
                "limit": None, "seconds": rest, "reference_seconds": whole, "parts": parts,
            }  # fmt: skip

    # Memory

    def _watched(self, name: str, task: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            reset_peak(self.device)
            task()
            self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes(self.device))

        return run

    def _memory(self) -> Iterator[Row]:
        waiting, weights = self.tally.prefix_bytes, sum(p.nbytes for p in self.backbone.denoiser.parameters())
        pairs = [("bytes that five waiting candidates hold, over the denoiser's weights", waiting, weights)]
        if len(self.peaks) == 2:
            pairs.append(("peak memory of 5 -> 1, over one call of five", self.peaks["ours"], self.peaks["stock"]))
        for what, cost, reference in pairs:
            yield {"what": what, "ratio": cost / reference, "limit": None, "bytes": cost, "reference_bytes": reference}


class Timed:
    """A method that adds its seconds to `seconds`, unless another one is running.

    Patched into a class, and with slots: probeselect looks for what changes around a module, and would take a counter
    that it can see for a denoiser's memory.
    """

    __slots__ = ("clock", "running", "seconds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.running, self.seconds = clock, False, Counter[str]()

    def method(self, usual: Any, name: str) -> Any:
        @functools.wraps(usual)
        def timed(module: Any, *args: Any, **kwargs: Any) -> Any:
            if self.running:
                return usual(module, *args, **kwargs)
            self.running, began = True, self.clock()
            try:
                return usual(module, *args, **kwargs)
            finally:
                rows = f" of {CallRows.of(args, kwargs).count} rows" if name == "denoiser" else ""
                self.seconds[name + rows] += self.clock() - began
                self.running = False

        return timed


@contextmanager
def stopwatch(pipe: Any, denoiser: Any, clock: Callable[[], float]) -> Iterator[Counter[str]]:
    """Seconds within the denoiser by its number of rows, the decoder and the text encoders, while open."""
    watch = Timed(clock)
    parts = {type(denoiser): ("forward", "denoiser"), type(pipe.vae): ("decode", "decoder")}
    for name, component in pipe.components.items():
        if name.startswith("text_encoder") and component is not None:
            parts[type(component)] = "forward", "text encoders"
    with ExitStack() as stack:
        for cls, (method, name) in parts.items():
            stack.enter_context(mock.patch.object(cls, method, watch.method(getattr(cls, method), name)))
        yield watch.seconds


def _check_finite(values: torch.Tensor, what: str) -> None:
    if not values.isfinite().all():
        raise SystemExit(f"{what}: random weights gave values that are not finite; nothing would be worth measuring")


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # of the resident set; without it the peak of all so far


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
