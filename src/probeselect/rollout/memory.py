"""Finds out whether a module remembers anything from one call to the next, and puts it back.

A denoiser with a memory (First Block Cache and its kin, a counter, a replaced forward that skips steps) computes
other things after calls that it never got, so replay does not fit it. Known caches are recognised; everything else is
found by looking at the Python state around the module before and after a step: attributes of the module and of what
hangs on it (processors, hooks, the variables of replaced functions). Contents of tensors are not looked at.
"""

import types
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

_PLAIN = (int, float, bool, str, bytes, complex, type(None))
# Attributes that torch itself keeps on every module.
_TORCH = frozenset(vars(nn.Module())) - {"training"}
_SKIPPED = _TORCH | {"_compiled_call_impl", "_internal_dict", "_hf_hook", "_old_forward", "forward"}
# Libraries whose objects hold no memory of a denoiser's calls; those of diffusers (hooks, processors) may.
_FOREIGN = frozenset(
    ("torch", "numpy", "accelerate", "peft", "probeselect", "builtins", "collections", "functools", "inspect")
)
_OF_A_STEP = frozenset(("_current_timestep", "_num_timesteps", "_interrupt", "_guidance_scale"))  # of every pipeline
_HOOK = "hook"
_MOST = 100_000  # things to look at
_LONGEST = 4096  # entries of a container that is looked into


def known_memory(module: nn.Module) -> str:
    """The name of a cache that diffusers has put on a module, "" where there is none."""
    if getattr(module, "is_cache_enabled", False):
        return type(getattr(module, "_cache_config", module)).__name__.removesuffix("Config")
    for part in module.modules():
        for hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).values():
            if getattr(hook, "_is_stateful", False):
                return type(hook).__name__.removesuffix("Hook")
    return ""


def outline(module: nn.Module) -> int:
    """A number that changes when somebody replaces a forward, a processor or the hooks of any part of a module."""
    parts = (
        (id(part), id(own.get("forward")), id(own.get("processor")), id(type(part).forward), len(own["_forward_hooks"]))
        for part in module.modules()
        for own in (vars(part),)
    )
    return hash(tuple(parts))


class Memory:
    """The Python state around a module, and other things, at one moment.

    before = Memory(unet)
    ...                              # calls of the unet
    before.changed(Memory(unet))     # whether they left anything behind
    before.restore()                 # as if they had not been
    """

    def __init__(self, module: nn.Module, *others: Any) -> None:
        self._seen: dict[int, tuple[Any, dict[Any, Any]]] = {}  # id -> (the thing, kept alive; what it held)
        self._waiting: list[Any] = [*module.modules(), *others]
        while self._waiting and len(self._seen) < _MOST:
            thing = self._waiting.pop()
            if id(thing) not in self._seen and (held := _held_by(thing)) is not None:
                self._seen[id(thing)] = thing, held
                self._waiting += [value for value in held.values() if _is_worth_a_look(value)]

    def changed(self, later: "Memory", counting: bool = False) -> bool:
        """Whether a later moment differs.

        counting: only in numbers and tensors that stood there before, for a first call may fill what no later one
        touches.
        """
        if not counting and self._seen.keys() != later._seen.keys():
            return True
        for identity, (_, held) in self._seen.items():
            if identity not in later._seen:
                continue
            now = later._seen[identity][1]
            if list(map(id, held.values())) == list(map(id, now.values())) and held.keys() == now.keys():
                continue
            if counting:
                if any(key in now and _counted(value, now[key]) for key, value in held.items()):
                    return True
            elif held.keys() != now.keys() or any(not _same(value, now[key]) for key, value in held.items()):
                return True
        return False

    def restore(self) -> None:
        """Put back what stood in every place that was looked at."""
        for thing, held in self._seen.values():
            now = _held_by(thing)
            if now is not None and (held.keys() != now.keys() or any(held[key] is not now[key] for key in held)):
                _put_back(thing, held)


def _held_by(thing: Any) -> dict[Any, Any] | None:
    """What a thing holds, by where; None for a thing that holds nothing of interest."""
    if isinstance(thing, nn.Module):
        # To look into, not to put back: while a pipeline runs, `forward` is ours.
        hooks = [vars(thing).get("forward"), *thing._forward_hooks.values(), *thing._forward_pre_hooks.values()]
        held: dict[Any, Any] = {(_HOOK, i): hook for i, hook in enumerate(hooks)}
        return held | {key: value for key, value in vars(thing).items() if key not in _SKIPPED}
    if isinstance(thing, DiffusionPipeline):
        return {key: v for key, v in vars(thing).items() if isinstance(v, int | float) and key not in _OF_A_STEP}
    if isinstance(thing, types.FunctionType):
        return dict(_variables(thing))
    if isinstance(thing, types.MethodType):
        return {"self": thing.__self__, "function": thing.__func__}
    if isinstance(thing, types.CellType):
        try:
            return {"cell": thing.cell_contents}
        except ValueError:  # not filled yet
            return None
    if isinstance(thing, list | tuple):
        return dict(enumerate(thing)) if len(thing) <= _LONGEST else None
    if isinstance(thing, dict):
        return dict(thing) if len(thing) <= _LONGEST else None
    return dict(vars(thing)) if hasattr(thing, "__dict__") else None


def _put_back(thing: Any, held: dict[Any, Any]) -> None:
    if isinstance(thing, types.CellType):
        thing.cell_contents = held["cell"]
    elif isinstance(thing, list):
        thing[:] = held.values()
    elif isinstance(thing, types.FunctionType):
        thing.__globals__.update({key: value for key, value in held.items() if isinstance(key, str)})
    elif isinstance(thing, dict):
        thing.clear()
        thing.update(held)
    elif isinstance(thing, DiffusionPipeline):
        vars(thing).update(held)
    elif isinstance(thing, nn.Module) or hasattr(thing, "__dict__"):
        own = vars(thing)
        for key in [key for key in own if key not in held and key not in _SKIPPED]:
            del own[key]
        own.update({key: value for key, value in held.items() if isinstance(key, str)})


def _variables(function: types.FunctionType) -> Iterator[tuple[Any, Any]]:
    """The variables that a function outlives its calls by: its cells, its defaults and the globals that it names."""
    yield from enumerate(function.__closure__ or ())
    yield from ((("default", i), value) for i, value in enumerate(function.__defaults__ or ()))
    if (function.__module__ or "").split(".")[0] not in (*_FOREIGN, "diffusers", "transformers"):
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, list | dict) or (isinstance(value, int | float) and not isinstance(value, bool)):
                yield name, value


def _is_worth_a_look(value: Any) -> bool:
    if isinstance(value, (*_PLAIN, Tensor, nn.Module, SchedulerMixin, type, types.ModuleType)):
        return False  # modules within the module are looked at in any case; a scheduler changes in every step
    if isinstance(value, list | tuple | dict | types.FunctionType | types.MethodType | types.CellType):
        return True
    return type(value).__module__.split(".")[0] not in _FOREIGN


def _counted(before: Any, now: Any) -> bool:
    """Whether a number, a tensor or a list of numbers is another one now."""
    if isinstance(before, list | tuple) and type(before) is type(now):
        return all(isinstance(value, _PLAIN) for value in (*before, *now)) and list(before) != list(now)
    is_number = isinstance(before, int | float | Tensor) and not isinstance(before, bool)
    return is_number and not _same(before, now)


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, _PLAIN) and type(a) is type(b) and (a == b or (a != a and b != b)))


class MemoryWatch:
    """Looks for a memory in the modules of a loop while they run, over several runs, until it is sure.

    `remembers` is "" for as long as there is no sign of one, else a description.
    """

    def __init__(self, modules: dict[str, nn.Module], pipe: Any = None, callbacks: bool = False) -> None:
        self._modules, self._pipe, self._callbacks = modules, pipe, callbacks
        found = {name: known_memory(module) for name, module in modules.items()}
        self.remembers = next((f"{name} uses {what}" for name, what in found.items() if what), "")
        self._outlines = {module: outline(module) for module in modules.values()}
        known = all(_MEMORYLESS.get(module) == shape for module, shape in self._outlines.items())
        self._sure = known and not self.remembers
        self._start: dict[str, Memory] | None = None
        self._after_first: dict[str, Memory] | None = None
        self._steps = 0  # computed in the present run

    def run_begins(self) -> None:
        self._steps, self._after_first = 0, None
        if self._callbacks and self._start is None:
            self._start = self._look()

    def before_call(self) -> None:
        if self._start is None and not self._sure:
            self._start = self._look()

    def step_over(self) -> None:
        """A step has been computed. Two steps must leave the same behind; of the first only numbers count."""
        self._steps += 1
        if self._sure or self.remembers or self._steps > 2:
            return
        now = self._look()
        if self._steps == 1:
            self._after_first = now
            return
        for name, before in (self._after_first or {}).items():
            if before.changed(now[name]):
                self.remembers = f"{name} keeps something from one step to the next"
        if not self.remembers:
            self._sure = True
            _MEMORYLESS.update(self._outlines)

    def run_ends(self) -> None:
        """Of a run of one step there is nothing to compare but its beginning."""
        if self._sure or self.remembers or self._after_first is None or self._start is None or self._steps != 1:
            return
        if any(before.changed(self._after_first[name], counting=True) for name, before in self._start.items()):
            self.remembers = "a module of the loop keeps count of its calls"

    def restore(self) -> bool:
        """Where there is a memory, or a callback has changed a module, as if no step had been computed.

        Returns whether a callback did.
        """
        start, by_callback = self._start or {}, False
        if start and self._callbacks and not self.remembers:
            now = self._look()
            by_callback = any(before.changed(now[name], counting=True) for name, before in start.items())
        if self.remembers or by_callback:
            for before in start.values():
                before.restore()
        return by_callback

    def _look(self) -> dict[str, Memory]:
        return {name: Memory(module, *([self._pipe] if self._pipe else ())) for name, module in self._modules.items()}


_MEMORYLESS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # outlines, when they remembered nothing
