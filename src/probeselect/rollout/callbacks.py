"""A user's callbacks under record and replay: each sees a step of a candidate once, with true latents.

A callback that only looks is not called again for steps that are replayed, and not while a preview coasts to the end.
One that changes something (the guidance, the latents, `pipe._interrupt`) is called again in a replay, since the
replayed run needs the change too. One that drops rows is right for one candidate at a time only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor


class DropsRows(Exception):
    """A callback gave back other numbers of rows than it got, in a call of several candidates."""


class CallbackError(Exception):
    """Carries an exception out of a user's callback, so that it is not taken for one of the pipeline's."""


@dataclass
class CallbackState:
    """What is known of the callbacks of a call of the sampler, over all its pipeline calls."""

    changes_something: bool = False


@dataclass(frozen=True)
class Moment:
    """Where a pipeline call stands when a callback is due."""

    coasting: bool
    replayed: bool  # the step that has just ended was one
    candidates: int


def watched(arguments: Mapping[str, Any], state: CallbackState, moment: Callable[[], Moment]) -> dict[str, Any]:
    """The arguments of a pipeline call with every callback put under watch."""

    def wrapped(name: str, value: Any) -> Any:
        if not name.startswith("callback") or not callable(value):
            return value
        if isinstance(value, PipelineCallback | MultiPipelineCallbacks):
            return _WatchedPipelineCallback(value, state, moment)
        return _plain(value, state, moment)

    return {name: wrapped(name, value) for name, value in arguments.items()}


def _plain(callback: Callable[..., Any], state: CallbackState, moment: Callable[[], Moment]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return _call(callback, args, state, moment())

    return call


class _WatchedPipelineCallback(PipelineCallback):
    """Diffusers asks a callback of its own kind for the tensors that it wants."""

    def __init__(self, callback: Any, state: CallbackState, moment: Callable[[], Moment]) -> None:
        self.callback, self.state, self.moment = callback, state, moment

    @property
    def tensor_inputs(self) -> list[str]:
        return list(self.callback.tensor_inputs)

    def __call__(self, *args: Any) -> Any:
        return _call(self.callback, args, self.state, self.moment())


def _call(callback: Callable[..., Any], args: tuple[Any, ...], state: CallbackState, moment: Moment) -> Any:
    if moment.coasting or (moment.replayed and not state.changes_something):
        return {}
    given = {name: value for arg in args if isinstance(arg, dict) for name, value in arg.items()}
    given |= {str(i): arg for i, arg in enumerate(args) if isinstance(arg, Tensor)}  # the old form: step, t, latents
    versions = {name: value._version for name, value in given.items() if isinstance(value, Tensor)}
    rows = {name: len(value) for name, value in given.items() if isinstance(value, Tensor) and value.ndim}
    pipe = next((arg for arg in args if hasattr(arg, "components")), None)
    before = dict(vars(pipe)) if pipe is not None else {}
    try:
        returned = callback(*args)
    except Exception as error:
        raise CallbackError from error
    returned = {} if returned is None else returned
    after = dict(vars(pipe)) if pipe is not None else {}
    changed = before.keys() != after.keys() or any(after[name] is not value for name, value in before.items())
    changed |= any(value._version != versions[name] for name, value in given.items() if name in versions)
    if isinstance(returned, dict):
        changed |= any(given.get(name) is not value for name, value in returned.items())
        if moment.candidates > 1:
            for name, value in returned.items():
                if isinstance(value, Tensor) and name in rows and value.ndim and len(value) != rows[name]:
                    raise DropsRows(name)
    state.changes_something |= changed
    return returned
