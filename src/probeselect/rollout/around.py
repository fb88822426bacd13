"""What is put around a pipeline for the length of one call, and taken away again."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Bar:
    """What a pipeline said to its progress bar last: the steps of its loop (0 where it has none), and those done."""

    total: int = 0
    done: int = 0


@contextmanager
def counted_steps(pipe: Any) -> Iterator[Bar]:
    """While open, what the pipeline says of its number of steps is of this call and of no earlier one."""
    own, usual, bar = vars(pipe), pipe.progress_bar, Bar()
    stale, own_bar = own.pop("_num_timesteps", None), own.get("progress_bar")

    def progress_bar(iterable: Any = None, total: int | None = None, **more: Any) -> Any:
        bar.total, bar.done = total or (len(iterable) if hasattr(iterable, "__len__") else 0), 0
        shown = usual(iterable=iterable, total=total, **more)
        update = shown.update

        def counting(*args: Any) -> Any:
            bar.done += 1
            return update(*args)

        shown.update = counting
        return shown

    own["progress_bar"] = progress_bar
    try:
        yield bar
    finally:
        if own_bar is None:
            own.pop("progress_bar", None)
        else:
            own["progress_bar"] = own_bar
        if stale is not None:
            own.setdefault("_num_timesteps", stale)


@contextmanager
def own_scheduler(pipe: Any, stepper: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """The pipeline runs on a copy of its scheduler.

    stepper: of the copy and its usual `step`, returns what runs in place of it. Copies that the pipeline makes of its
    scheduler (for sound beside a picture) step as usual.
    """
    original = pipe.scheduler
    scheduler, kind = copy.deepcopy(original), type(original)
    ours = stepper(scheduler, functools.partial(kind.step, scheduler))

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs) if self is scheduler else kind.step(self, *args, **kwargs)

    fields = {"step": step, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    scheduler.__class__ = type(kind.__name__, (kind,), fields)
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = original


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar: ours counts all batches."""
    found = pipe.__dict__.get("_progress_bar_config")
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if found is None:
            pipe.__dict__.pop("_progress_bar_config", None)  # a pipeline of pipelines never sets it
        else:
            pipe._progress_bar_config = found


def inner_pipeline(pipe: Any, denoiser: Any) -> Any:
    """The pipeline whose loop calls a denoiser: a combined pipeline holds others, else it is the pipeline itself."""
    for part in vars(pipe).values():
        if hasattr(part, "scheduler") and any(value is denoiser for value in getattr(part, "components", {}).values()):
            return part
    return pipe


def execution_device(pipe: Any) -> torch.device:
    """Where the pipeline computes, also while its weights are offloaded."""
    return torch.device(getattr(pipe, "_execution_device", None) or pipe.device)


def planned_steps(pipe: Any, bar: Bar) -> int:
    """Steps of the present run, which may be fewer than the scheduler has: image-to-image begins late."""
    if planned := vars(pipe).get("_num_timesteps"):
        return int(planned)
    scheduler = pipe.scheduler
    if bar.total:
        return min(len(scheduler.timesteps), bar.total * getattr(scheduler, "order", 1))
    return len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)
