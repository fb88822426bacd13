"""Takes the candidates of all prompts from rung to rung, in waves that fit the device.

Knows waves, memory and the order of candidates; does not know why a candidate is kept. A generator: it yields a
`Stage` at every rung, whose `keep` says who goes on, and a last one with the finished pictures.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import Tap
from probeselect.core.candidates import Candidate
from probeselect.core.errors import ProbeSelectError
from probeselect.sampling.encoders import EncoderMemo
from probeselect.sampling.replay import Prefix, WaveResult, WaveRun, check_arguments


@dataclass
class Stage:
    """All running candidates at one rung, or finished (`rung` is 1)."""

    rung: float
    completed_steps: int
    total_steps: int
    candidates: list[Candidate]
    maps: dict[str, Tensor]  # tap -> [N, C, H, W], in the order of `candidates`
    prompt_embeddings: Tensor | None  # [N, D] mean of the denoiser's text tokens, where it has them
    pictures: list[Any] | None  # previews at a rung that asked for them; finished pictures at the end
    kept: list[int] = field(default_factory=list)

    def keep(self, indices: Sequence[int]) -> None:
        """Let the candidates at these positions of `candidates` run on; the others stop here."""
        self.kept = sorted(set(indices))


@dataclass
class Tally:
    """What a rollout has cost so far."""

    denoiser_rows: int = 0  # image evaluations of the denoiser; a guided step of one candidate is 1
    total_steps: int = 0
    encoder_rows: int = 0
    largest_wave: int = 0
    wave_halvings: int = 0
    prefix_bytes: int = 0  # the most that waiting candidates held at once


def rollout(
    backbone: Backbone,
    candidates: Sequence[Candidate],
    rungs: Sequence[float],
    *,
    taps: Sequence[Tap] = (),
    previews: bool = False,
    finish: bool = True,
    batch_size: int | None = None,
    tally: Tally | None = None,
    progress: Callable[[int, int], None] = lambda done, planned: None,
    **arguments: Any,
) -> Iterator[Stage]:
    """Yield the stage at each rung, then (if `finish`) the finished one.

    Args:
        rungs: increasing fractions of the trajectory.
        taps: activations to read at every rung; `X0` is the latent x0-prediction.
        previews: decode the x0-prediction at every rung, with the pipeline's own decoder.
        batch_size: most candidates in one call of the pipeline; None means all, halved when memory runs out.
        progress: called with (denoiser rows done, rows planned as far as is known) after every step;
            planned takes it that all who run finish, so it falls at every cut.
        arguments: handed to every call of the pipeline.

    Raises:
        UsageError: an argument that the pipeline does not take.
        ProbeSelectError: one candidate alone does not fit the memory.
    """
    waves = Waves(backbone, arguments, batch_size, tally or Tally(), progress)
    running = list(candidates)
    for rung in rungs:
        stage = waves.to_rung(running, rung, taps, previews)
        yield stage
        running = [running[i] for i in stage.kept]
        waves.forget_all_but(running)
        if not running:
            return
    if finish:
        yield waves.to_end(running)


def _stage(rung: float, candidates: Sequence[Candidate], results: Sequence[WaveResult]) -> Stage:
    first = results[0]
    embeddings = [r.prompt_embeddings for r in results if r.prompt_embeddings is not None]
    return Stage(
        rung=rung,
        completed_steps=first.completed_steps,
        total_steps=first.total_steps,
        candidates=list(candidates),
        maps={tap: torch.cat([r.maps[tap] for r in results]) for tap in first.maps},
        prompt_embeddings=torch.cat(embeddings) if len(embeddings) == len(results) else None,
        pictures=None if first.pictures is None else [p for r in results for p in r.pictures or ()],
        kept=list(range(len(candidates))),
    )


class Waves:
    """Cuts candidates into waves and runs them; keeps what was recorded, so that they can be taken further later."""

    def __init__(
        self,
        backbone: Backbone,
        arguments: Mapping[str, Any],
        batch_size: int | None,
        tally: Tally,
        progress: Callable[[int, int], None],
    ) -> None:
        check_arguments(backbone, arguments)
        self.backbone, self.arguments, self.tally, self.progress = backbone, arguments, tally, progress
        self.batch_size = batch_size
        self.memo = EncoderMemo()
        self.prefixes: dict[Candidate, Prefix] = {}
        self.running = self.rows_at_start = 0  # of the stretch from one rung to the next

    def to_rung(self, candidates: Sequence[Candidate], rung: float, taps: Sequence[Tap], previews: bool) -> Stage:
        """Take candidates, new ones or ones that stand at one earlier rung, to a rung."""
        one = functools.partial(WaveRun.to_rung, rung=rung, taps=taps, preview=previews, arguments=self.arguments)
        return _stage(rung, candidates, self._run(candidates, one))

    def to_end(self, candidates: Sequence[Candidate]) -> Stage:
        """Finish candidates."""
        one = functools.partial(WaveRun.to_end, arguments=self.arguments)
        return _stage(1.0, candidates, self._run(candidates, one))

    def _run(self, candidates: Sequence[Candidate], one: Callable[[WaveRun], WaveResult]) -> list[WaveResult]:
        """Run all candidates in waves of near-equal size, in order; halve the waves when memory runs out."""
        self.running, self.rows_at_start = len(candidates), self.tally.denoiser_rows
        results: list[WaveResult] = []
        start = 0
        while start < len(candidates):
            left = len(candidates) - start
            size = math.ceil(left / math.ceil(left / (self.batch_size or left)))
            wave = candidates[start : start + size]
            rows_before = self.tally.denoiser_rows
            try:
                results.append(self._run_wave(wave, one))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self.tally.denoiser_rows = rows_before
                self._halve(len(wave), error)
                continue
            start += size
        return results

    def _run_wave(self, wave: Sequence[Candidate], one: Callable[[WaveRun], WaveResult]) -> WaveResult:
        prefixes = [self.prefixes.setdefault(candidate, Prefix()) for candidate in wave]
        done = prefixes[0].completed_steps
        run = WaveRun(
            self.backbone,
            wave,
            prefixes,
            memo=self.memo,
            on_step=lambda n: self._count(n, run.total_steps - done),
        )
        result = one(run)
        self.tally.total_steps = result.total_steps
        self.tally.encoder_rows = self.memo.computed_rows
        self.tally.largest_wave = max(self.tally.largest_wave, len(wave))
        held = sum(prefix.nbytes for prefix in self.prefixes.values())
        self.tally.prefix_bytes = max(self.tally.prefix_bytes, held)
        return result

    def _count(self, rows: int, steps_left_at_start: int) -> None:
        self.tally.denoiser_rows += rows
        self.progress(self.tally.denoiser_rows, self.rows_at_start + self.running * steps_left_at_start)

    def _halve(self, size: int, error: Exception) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise ProbeSelectError(f"out of memory with one candidate in the wave: {error}") from error
        self.batch_size = size // 2
        self.tally.wave_halvings += 1

    def forget_all_but(self, running: Sequence[Candidate]) -> None:
        keep = set(running)
        self.prefixes = {c: prefix for c, prefix in self.prefixes.items() if c in keep}


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
