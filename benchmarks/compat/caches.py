"""Denoisers that remember: the caches of diffusers, and what people patch onto a model by hand.

Each must really change the picture, which is checked, or a row would show nothing.
"""

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import diffusers.hooks as hooks
import torch
from torch import nn

from compat.pictures import difference, picture_of
from compat.subjects import RUNG, STEPS, Subject, denoiser, subjects
from compat.trial import EXACT, RESTARTED, Ran, Trial

GROUP = "Caches and other memories of a denoiser"
Prepare = Callable[[Any], Any]
CALLS = 0  # the counter of a patch that keeps it in a global


def trials() -> Iterator[Trial]:
    known = subjects()
    for name in ("SD3", "FLUX.1", "Wan"):
        for kind, prepare in _caches().items():
            if (name, kind) not in _STOCK_FAILS:
                yield _remembering(known[name], kind, prepare)
    for name in ("SD", "SDXL", "SD3", "FLUX.1", "Wan", "ControlNet"):
        for kind, prepare in MEMORIES.items():
            yield _remembering(known[name], kind, prepare)
        plain = _patched(lambda pipe: lambda output: _scaled(output, 1.1))
        yield known[name].trial("a replaced forward without memory", GROUP, prepare=plain, expect=(EXACT,))
    for name in ("FLUX.1", "Wan"):
        cache = _caches()["First Block Cache"]
        yield _remembering(known[name], "First Block Cache, two rungs", cache, rungs=(RUNG, 0.5), counted=False)
        yield _remembering(known[name], "First Block Cache, previews", cache, call={"previews": True})
        yield _remembering(known[name], "First Block Cache, one candidate a call", cache, batch_size=1)
    yield _remembering(known["FLUX.1"], "First Block Cache, a second call", cache, again=True)


def _remembering(subject: Subject, kind: str, prepare: Prepare, **options: Any) -> Trial:
    expected = 4 * round(RUNG * STEPS) + 2 * STEPS if len(options.get("rungs", (RUNG,))) == 1 else 0

    def check(ran: Ran) -> Iterable[str]:
        if CALLS and kind == "a counter in a global":
            yield "the global counter is not as it was"
        if difference(_stock(subject, None), _stock(subject, prepare)) < 1e-3:
            yield "the memory has no effect on the stock picture"
        if expected and ran.results and ran.results[0].cost.denoiser_rows != expected:
            yield f"{ran.results[0].cost.denoiser_rows} steps were told; {expected} are needed with a restart"

    # A global is no part of the pipeline, so the next stock picture has nothing to do with it.
    return subject.trial(
        kind, GROUP, **{"prepare": prepare, "check": check, "counted": False, "expect": (RESTARTED,), **options},
        after=kind != "a counter in a global",
    )  # fmt: skip


def _stock(subject: Subject, prepare: Prepare | None) -> Any:
    pipe = subject.build()
    if prepare:
        prepare(pipe)
    generator = torch.Generator("cpu").manual_seed(0)
    return picture_of(pipe("a cat", generator=generator, output_type="np", **subject.arguments), whole=True)


def _caches() -> dict[str, Prepare]:
    def enabled(config: Callable[[Any], Any], apply: Any) -> Prepare:
        def prepare(pipe: Any) -> None:
            if hasattr(pipe.transformer, "enable_cache"):
                pipe.transformer.enable_cache(config(pipe))
            else:
                apply(pipe.transformer, config(pipe))

        return prepare

    def first_block(pipe: Any) -> Any:
        return hooks.FirstBlockCacheConfig(threshold=10.0)

    def mag(pipe: Any) -> Any:
        return hooks.MagCacheConfig(
            threshold=1.0, max_skip_steps=2, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, retention_ratio=0.2
        )

    def taylor(pipe: Any) -> Any:
        return hooks.TaylorSeerCacheConfig(
            cache_interval=3,
            disable_cache_before_step=2,
            max_order=1,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"(.*_)?blocks\.\d+\.attn\d?"],
        )

    def pyramid(pipe: Any) -> Any:
        return hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, cross_attention_block_skip_range=3,
            spatial_attention_timestep_skip_range=(-1, 1001), cross_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: _number(pipe),
        )  # fmt: skip

    def faster(pipe: Any) -> Any:
        # Its first skipped call must come after one that was kept, so not all timesteps are in the range.
        return hooks.FasterCacheConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 900),
            unconditional_batch_timestep_skip_range=(-1, 1001), attention_weight_callback=lambda _: 0.3,
            current_timestep_callback=lambda: _number(pipe), is_guidance_distilled=True,
        )  # fmt: skip

    return {
        "First Block Cache": enabled(first_block, hooks.apply_first_block_cache),
        "MagCache": enabled(mag, hooks.apply_mag_cache),
        "TaylorSeer": enabled(taylor, hooks.apply_taylorseer_cache),
        "Pyramid Attention Broadcast": enabled(pyramid, hooks.apply_pyramid_attention_broadcast),
        "FasterCache": enabled(faster, hooks.apply_faster_cache),
    }


# The stock pipeline cannot run with them either.
_STOCK_FAILS = {("SD3", "First Block Cache"), ("SD3", "TaylorSeer"), ("SD3", "FasterCache")}


def _number(pipe: Any) -> float:
    timestep = getattr(pipe, "_current_timestep", None)
    return 500.0 if timestep is None else float(timestep)


def _scaled(output: Any, factor: float) -> Any:
    if isinstance(output, torch.Tensor):
        return output * factor
    if isinstance(output, tuple):
        return (_scaled(output[0], factor), *output[1:])
    return type(output)(**{name: _scaled(value, factor) for name, value in output.items()})


def _later(output: Any, calls: int) -> Any:
    """A later call gives more; as strange as caches that skip, and easier to see."""
    return _scaled(output, 1 + 0.05 * calls)


def _patched(change: Callable[[Any], Callable[[Any], Any]]) -> Prepare:
    """Replaces `forward` on the instance by one whose outputs are changed."""

    def prepare(pipe: Any) -> None:
        module, after = denoiser(pipe), change(pipe)
        usual = module.forward

        @functools.wraps(usual)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return after(usual(*args, **kwargs))

        module.forward = forward

    return prepare


def _on_attribute(pipe: Any) -> None:
    module = denoiser(pipe)
    usual, module.calls = module.forward, 0

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return _later(usual(*args, **kwargs), self.calls)

    module.forward = types.MethodType(functools.wraps(usual)(forward), module)


def _in_closure(pipe: Any) -> Callable[[Any], Any]:
    calls = 0

    def after(output: Any) -> Any:
        nonlocal calls
        calls += 1
        return _later(output, calls)

    return after


def _in_global(pipe: Any) -> Callable[[Any], Any]:
    global CALLS
    CALLS = 0

    def after(output: Any) -> Any:
        global CALLS
        CALLS += 1
        return _later(output, CALLS)

    return after


class Helper:
    """As DeepCache's: stands beside the pipeline, and every second call gives what the one before gave."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.calls, self.kept = pipe, 0, dict[str, Any]()
        self.functions = {"denoiser": denoiser(pipe).forward}

    def enable(self) -> None:
        @functools.wraps(self.functions["denoiser"])
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls % 3 == 1 or self.kept["output"][0].shape != self._sample(args, kwargs).shape:
                self.kept["output"] = self.functions["denoiser"](*args, **kwargs)
            return self.kept["output"]

        denoiser(self.pipe).forward = wrapped

    @staticmethod
    def _sample(args: Any, kwargs: Any) -> torch.Tensor:
        return args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "sample"]


def _helper(pipe: Any) -> None:
    Helper(pipe).enable()


class Counting(nn.Module):
    """An attention processor that counts."""

    def __init__(self, usual: Any) -> None:
        super().__init__()
        self.usual, self.calls = usual, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        output = self.usual(*args, **kwargs)
        return _later(output, self.calls)


class PlainCounting:
    """The same, no module."""

    def __init__(self, usual: Any) -> None:
        self.usual, self.calls = usual, 0

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        kwargs = {key: value for key, value in kwargs.items() if key != "cross_attention_kwargs"}
        return _later(self.usual(attn, hidden_states, *args, **kwargs), self.calls)


def _processors(kind: Any) -> Prepare:
    def prepare(pipe: Any) -> None:
        for part in denoiser(pipe).modules():
            if callable(usual := getattr(part, "processor", None)):
                part.__dict__.pop("processor", None)
                part.processor = kind(usual)

    return prepare


def _on_class(pipe: Any) -> None:
    """As TeaCache: the class has the forward and the counter, until the instance counts."""
    module = denoiser(pipe)
    usual = type(module)

    @functools.wraps(usual.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.cnt += 1
        output = usual.forward(self, *args, **kwargs)
        new = output[0] if isinstance(output, tuple) else output.sample
        if self.cnt % 3 and self.previous is not None and self.previous.shape == new.shape:
            return (self.previous, *output[1:]) if isinstance(output, tuple) else type(output)(sample=self.previous)
        self.previous = new
        return output

    fields = {"forward": forward, "cnt": 0, "previous": None, "__module__": usual.__module__}
    module.__class__ = type(usual.__name__, (usual,), fields)


class Hook:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        self.calls += 1
        return _later(output, self.calls)


def _hook(pipe: Any) -> None:
    denoiser(pipe).register_forward_hook(Hook())


def _inner_hook(pipe: Any) -> None:
    module = denoiser(pipe)
    if hasattr(module, "time_embedding"):
        inner = module.time_embedding
    else:
        block = (getattr(module, "transformer_blocks", None) or module.blocks)[-1]
        inner = next(part for name in ("attn1", "ff", "ffn") if (part := getattr(block, name, None)))
    inner.register_forward_hook(Hook())


def _blend(pipe: Any) -> Callable[[Any], Any]:
    kept: dict[str, torch.Tensor] = {}

    def after(output: Any) -> Any:
        new = output[0] if isinstance(output, tuple) else output.sample
        old = kept.get("last", new)
        kept["last"] = new
        mixed = 0.5 * (new + old) if old.shape == new.shape else new
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    return after


def _on_pipe(pipe: Any) -> Callable[[Any], Any]:
    pipe.calls_of_mine = 0

    def after(output: Any) -> Any:
        pipe.calls_of_mine += 1
        return _later(output, pipe.calls_of_mine)

    return after


MEMORIES: dict[str, Prepare] = {
    "a counter on the module": _on_attribute,
    "a counter in a closure": _patched(_in_closure),
    "a counter in a global": _patched(_in_global),
    "a helper object (as DeepCache)": _helper,
    "an attention processor that counts": _processors(PlainCounting),
    "an attention module that counts": _processors(Counting),
    "a patched class (as TeaCache)": _on_class,
    "a forward hook that counts": _hook,
    "a hook on an inner block": _inner_hook,
    "outputs blended with the last": _patched(_blend),
    "a counter on the pipeline": _patched(_on_pipe),
}
