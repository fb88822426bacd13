"""Runs candidates in batches that are right and that fit, and falls back where they are not or do not.

Knows what is tried in which order. A batch is right when a candidate in it is given what it is given alone: that is
looked at before the first step (`_preflight`) and again at the rung (`_verify`). What does not fit replay is run again
from the start, as a plain call of the pipeline. What was found out about a pipeline holds for its next call too.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.backbones.loop_modules import is_helper, loop_modules
from probeselect.backbones.taps import Tap
from probeselect.core.candidates import Candidate
from probeselect.core.errors import ProbeSelectError, Stopped, UsageError
from probeselect.core.stage import Stage
from probeselect.rollout.arguments import check_arguments, has_pictures, spread
from probeselect.rollout.callbacks import CallbackError, CallbackState
from probeselect.rollout.encoders import EncoderMemo
from probeselect.rollout.manner import WRONG_TOGETHER, Unlike, is_out_of_memory, manner_of, one_line
from probeselect.rollout.memory import MemoryWatch
from probeselect.rollout.outputs import alike
from probeselect.rollout.replay import BatchRun
from probeselect.rollout.rows import Indivisible
from probeselect.rollout.shared import BatchResult, Shared, stage_of
from probeselect.rollout.tally import Tally
from probeselect.rollout.tape import DoesNotFit, Prefix

Goal = Callable[..., BatchResult]  # of a run and its arguments
MOST_IN_A_BATCH = 32  # candidates, where nothing is said: more are no faster, and one that fails costs more
LOOKED_AT = 2  # steps of a batch that runs to the end at once, to see whether it was right


class Batches:
    """Cuts candidates into batches and runs them; keeps what was recorded, so that they can be taken further later."""

    def __init__(
        self,
        backbone: Backbone,
        candidates: Sequence[Candidate],
        arguments: Mapping[str, Any],
        batch_size: int | None,
        tally: Tally,
        progress: Callable[[int, int], None],
        say: Callable[[str], None] = lambda note: None,
    ) -> None:
        check_arguments(backbone, candidates, arguments)
        self.backbone, self.everyone, self.arguments = backbone, list(candidates), dict(arguments)
        self.batch_size, self.tally, self.progress, self.say = batch_size, tally, progress, say
        self.manner = manner_of(backbone.pipe, arguments)
        self.manner.copies &= has_pictures(arguments)
        self.prefixes: dict[Candidate, Prefix] = {}
        self.stopping = False
        self.running = self.rows_at_start = 0  # of the stretch from one rung to the next
        callbacks = any(name.startswith("callback") for name in arguments)
        memory = MemoryWatch(loop_modules(backbone.pipe), backbone.pipe, callbacks)
        self.shared = Shared(backbone, EncoderMemo(), CallbackState(), memory, self._count, self._note)

    def to_rung(self, candidates: Sequence[Candidate], rung: float, taps: Sequence[Tap], previews: bool) -> Stage:
        """Take candidates, new ones or ones that stand at one earlier rung, to a rung."""
        goal = functools.partial(_to_rung, rung=rung, taps=taps, preview=previews)
        stage = stage_of(candidates, [result for _, result in self._run(candidates, goal, finishing=False)])
        return replace(stage, asked=rung, rung=stage.completed_steps / stage.total_steps)

    def to_end(self, candidates: Sequence[Candidate]) -> Stage:
        """Finish candidates."""
        return stage_of(candidates, [result for _, result in self._run(candidates, _to_end, finishing=True)])

    def finished(self, candidates: Sequence[Candidate]) -> Iterator[Stage]:
        """Finish candidates, and yield each batch as soon as it is finished."""
        for batch, result in self._run(candidates, _to_end, finishing=True):
            yield stage_of(batch, [result])

    def stop(self) -> None:
        """End the run after the step that is being computed, which then raises Stopped; from any thread."""
        self.stopping = True

    def forget_all_but(self, running: Sequence[Candidate]) -> None:
        keep = set(running)
        self.prefixes = {c: prefix for c, prefix in self.prefixes.items() if c in keep}

    def _run(
        self, candidates: Sequence[Candidate], goal: Goal, finishing: bool
    ) -> Iterator[tuple[Sequence[Candidate], BatchResult]]:
        """Run all candidates in batches of near-equal size, in order."""
        self.running, self.rows_at_start = len(candidates), self.tally.denoiser_rows
        start = 0
        while start < len(candidates):
            if self.stopping:
                raise Stopped
            batch = self._next_batch(candidates[start:], finishing)
            if (result := self._try(batch, goal, finishing)) is not None:
                yield batch, result
                start += len(batch)

    def _next_batch(self, left: Sequence[Candidate], finishing: bool) -> Sequence[Candidate]:
        if finishing and self.shared.memory.remembers:
            return left[:1]  # the memory would be of the batch: only a plain call of one gives the stock picture
        first = left[0]
        alike = [c.group == first.group or self.manner.mixed for c in left]
        alike = [each and self._is_recorded(c) == self._is_recorded(first) for each, c in zip(alike, left, strict=True)]
        left = left[: alike.index(False) if False in alike else len(left)]
        most = min(bound for bound in (self.batch_size or MOST_IN_A_BATCH, self.manner.most, len(left)) if bound)
        return left[: math.ceil(len(left) / math.ceil(len(left) / most))]

    def _is_recorded(self, candidate: Candidate) -> bool:
        return bool(self._prefix(candidate).calls)

    def _try(self, batch: Sequence[Candidate], goal: Goal, finishing: bool) -> BatchResult | None:
        """A batch's result; None when it is to be cut anew, or run again from the start."""
        before = {candidate: replace(self._prefix(candidate)) for candidate in batch}
        recorded = self._is_recorded(batch[0])
        try:
            if len(batch) > 1 and not recorded:
                self._preflight(batch)
            unproven = len(batch) > 1 and not recorded and not self.manner.checked
            result = self._run_batch(batch, goal, LOOKED_AT if unproven and finishing else 0)
            if len(batch) > 1 and finishing and self.shared.memory.remembers:
                raise DoesNotFit
            if unproven:
                self._verify(batch)
            if len(batch) > 1 and not self.manner.decoded:
                self._verify_picture(batch, result)
            self.manner.checked |= len(batch) > 1 and not self.shared.memory.remembers
            return result
        except CallbackError as error:
            raise (error.__cause__ or error) from None
        except ProbeSelectError:
            raise
        except DoesNotFit as error:
            self._restart(batch, str(error))
        except Exception as error:
            self.prefixes.update(before)
            if len(batch) == 1 and recorded and not is_out_of_memory(error):
                self._restart(batch, "the recorded steps could not be replayed")
            else:
                self._shrink(batch, error)
        return None

    def _run_batch(self, batch: Sequence[Candidate], goal: Goal, recorded_steps: int) -> BatchResult:
        prefixes = [self._prefix(candidate) for candidate in batch]
        memory = self.shared.memory
        if prefixes[0].completed_steps and not prefixes[0].calls:
            self._restart(batch, "")
        self._steps_before = prefixes[0].recorded_steps
        memory.restore()
        memory.run_begins()
        self._run_now = run = BatchRun(self.shared, batch, prefixes)
        try:
            more = {"recorded_steps": recorded_steps} if recorded_steps else {}
            result = goal(run, self._spread(batch, self.manner.copies), **more)
        finally:
            memory.run_ends()
            self.shared.callbacks.changes_something |= memory.restore()
        if memory.remembers:
            for prefix in prefixes:
                prefix.calls = []
        self.tally.total_steps = result.total_steps
        self.tally.encoder_rows = self.shared.memo.computed_rows
        self.tally.largest_wave = max(self.tally.largest_wave, len(batch))
        held = sum(prefix.nbytes for prefix in self.prefixes.values())
        self.tally.prefix_bytes = max(self.tally.prefix_bytes, held)
        return result

    def _prefix(self, candidate: Candidate) -> Prefix:
        return self.prefixes.setdefault(candidate, Prefix())

    def _spread(self, batch: Sequence[Candidate], copies: bool) -> dict[str, Any]:
        return spread(self.backbone, self.everyone, batch, self.arguments, copies)

    def _preflight(self, batch: Sequence[Candidate]) -> None:
        """Before any step: is a candidate of the batch given what it is given alone? Raises Unlike if not."""
        several = len({candidate.prompt for candidate in batch}) > 1
        if self.manner.checked and not several:
            return
        new = [Prefix() for _ in batch]
        self._run_now = run = BatchRun(self.shared, batch, new)
        together = run.to_first_call(self._spread(batch, self.manner.copies)).collected()
        for i in _witnesses(batch):
            alone = BatchRun(self.shared, batch[i : i + 1], new[:1]).to_first_call(
                self._spread(batch[i : i + 1], False)
            )
            if not together.of(i, len(batch)).matches(alone.collected().of(0, 1)):
                raise Unlike

    def _verify(self, batch: Sequence[Candidate]) -> None:
        """At the rung: does a candidate, replayed alone, meet at every step what it met in the batch?"""
        for i in _witnesses(batch):
            prefix = self.prefixes[batch[i]]
            if prefix.calls:
                try:
                    BatchRun(self.shared, batch[i : i + 1], [prefix]).replay(self._spread(batch[i : i + 1], False))
                except (DoesNotFit, Indivisible) as error:
                    raise Unlike from error
                finally:
                    self.shared.memory.restore()

    def _verify_picture(self, batch: Sequence[Candidate], result: BatchResult) -> None:
        """Is the last candidate's picture the one that its latents alone are decoded to?"""
        prefix, latents, n = self.prefixes[batch[-1]], result.latents, len(batch)
        if result.pictures is None or not isinstance(latents, Tensor) or not prefix.calls or len(latents) % n:
            return
        more = {"output_type": "pil"} if result.completed_steps < result.total_steps else {}
        arguments = {**self._spread(batch[-1:], False), **more}
        try:
            picture = BatchRun(self.shared, batch[-1:], [prefix]).to_picture(latents[n - 1 :: n], arguments)
        finally:
            self.shared.memory.restore()
        if not alike(picture, result.pictures[-1]):
            raise Unlike
        self.manner.decoded = True

    def _restart(self, batch: Sequence[Candidate], reason: str) -> None:
        """What was recorded of these candidates is let go; they are run from the start."""
        because = self.shared.memory.remembers or reason
        self.tally.restarted |= {c for c in batch if self._prefix(c).completed_steps}
        for candidate in batch:
            self._prefix(candidate).calls = []
        if because:
            self._note(
                f"Candidates that go on are run again from the start, because {because}: "
                "their pictures are right, and some steps are computed twice."
            )

    def _shrink(self, batch: Sequence[Candidate], error: Exception) -> None:
        """Cut the next batches so that what went wrong with this one cannot happen again."""
        out_of_memory = is_out_of_memory(error)
        if out_of_memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1 and out_of_memory:
            raise ProbeSelectError(f"out of memory with one candidate in the batch: {one_line(error)}") from error
        if len(batch) == 1:
            raise self._failure(error) from error
        if not out_of_memory and not isinstance(error, WRONG_TOGETHER):
            for group in dict.fromkeys(c.group for c in batch):
                self._check_alone([next(c for c in batch if c.group == group)])
        most = self.manner.most
        note = self.manner.narrow(
            type(self.backbone.pipe).__name__, batch, error, begun=self._run_now.steps > 0,
            pictures=has_pictures(self.arguments),
        )  # fmt: skip
        self.tally.wave_halvings += self.manner.most != most
        if note:
            self._note(note)

    def _check_alone(self, one: Sequence[Candidate]) -> None:
        """Does the pipeline begin at all, with one candidate? If not, a smaller batch is no help."""
        try:
            BatchRun(self.shared, one, [Prefix()]).to_first_call(self._spread(one, False))
        except ProbeSelectError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ProbeSelectError:
        """What the pipeline said, in one line. Before its first module ran it was about the arguments."""
        told = f"{type(self.backbone.pipe).__name__}: {one_line(error)}"
        if self._run_now.coasting:
            told += "; its candidates cannot be decoded before their end, so use a scorer that needs no previews"
        early = isinstance(error, ValueError | TypeError) and not self._run_now.calls
        return UsageError(told) if early else ProbeSelectError(told)

    def _count(self, batch: Sequence[Candidate], modules: Sequence[str]) -> None:
        self.tally.count(batch, modules, not all(is_helper(name) for name in modules))
        planned = self.rows_at_start + self.running * (self._run_now.total_steps - self._steps_before)
        self.progress(self.tally.denoiser_rows, max(planned, self.tally.denoiser_rows))
        if self.stopping and self._run_now.steps < self._run_now.total_steps:  # one that is at its end is decoded
            raise Stopped

    def _note(self, note: str) -> None:
        if note not in self.tally.notes:
            self.tally.notes.append(note)
            self.say(note)


def _to_rung(
    run: BatchRun, arguments: Mapping[str, Any], *, rung: float, taps: Sequence[Tap], preview: bool
) -> BatchResult:
    return run.to_rung(rung, taps, preview, arguments)


def _to_end(run: BatchRun, arguments: Mapping[str, Any], recorded_steps: int = 0) -> BatchResult:
    return run.to_end(arguments, recorded_steps)


def _witnesses(batch: Sequence[Candidate]) -> list[int]:
    """Candidates to look at: the last, and those of the shortest and the longest prompt, which padding tells apart."""
    by_length = sorted(range(len(batch)), key=lambda i: len(batch[i].prompt))
    several = len({candidate.prompt for candidate in batch}) > 1
    return list(dict.fromkeys([len(batch) - 1, *([by_length[0], by_length[-1]] if several else [])]))
