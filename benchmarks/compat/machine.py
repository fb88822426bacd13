"""How a pipeline is run: offload, half precision, sliced, short of memory; and pictures that break down.

Compiled denoisers are tried in tests/test_replay.py: a new pipeline for every picture would be compiled each time.
"""

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from compat.subjects import RUNG, denoiser, subjects
from compat.trial import EXACT, Ran, Trial
from probeselect.core.candidates import candidates_of
from probeselect.scorers.table import RandomScorer

RUNNING = "Ways to run a pipeline"
MEMORY = "Batches that do not fit"
BROKEN = "Pictures that break down"


def trials() -> Iterator[Trial]:
    known = subjects()
    for name in ("SD", "SDXL", "SD3", "FLUX.1", "Wan", "ControlNet"):
        for kind, prepare in _WAYS.items():
            if name in _ONLY.get(kind, known):
                yield known[name].trial(kind, RUNNING, prepare=prepare, expect=(EXACT,))
        for kind in ("sequential offload", "group offload by leaf", "group offload by block"):
            yield known[name].trial(
                f"{kind}, previews", RUNNING, prepare=_WAYS[kind], call={"previews": True}, expect=(EXACT,)
            )
        # Rounding differs from batch to batch, and a step hands it on to the next.
        yield known[name].trial("bfloat16", RUNNING, prepare=_bf16, tolerance=0.15, expect=(EXACT,))
        yield known[name].trial("bfloat16, one candidate a call", RUNNING, prepare=_bf16, batch_size=1, expect=(EXACT,))
        for most in (4, 2, 1):
            yield known[name].trial(
                f"memory for {most} of 8", MEMORY, prepare=_fits(most), n=8, check=_wave(most), expect=(EXACT,),
                counted=False,
            )  # fmt: skip
        yield known[name].trial(
            "fails with several", MEMORY, prepare=_one_only, check=_wave(1), expect=(EXACT,), counted=False
        )
        yield known[name].trial(
            "memory for 2, a second call", MEMORY, prepare=_fits(2), again=True, check=_no_retry, counted=False
        )
    for name in ("SD", "SDXL", "SD3", "FLUX.1", "Wan", "ControlNet", "img2img", "inpaint"):
        for at in (1, 5):
            for kind, call in (("", {}), (", previews", {"previews": True})):
                yield known[name].trial(
                    f"not finite from step {at} on{kind}", BROKEN, prepare=_nan(at), k=1, call=call, counted=False,
                    check=_next_is_kept("not finite"), expect=(EXACT,),
                )  # fmt: skip
    for name in ("SD", "img2img", "inpaint", "ControlNet"):
        for kind, call in (("", {}), (", previews", {"previews": True})):
            yield known[name].trial(
                f"a safety checker{kind}", BROKEN, prepare=_safety, k=1, call=call, counted=False,
                check=_next_is_kept("safety checker"), expect=(EXACT,),
            )  # fmt: skip


def _offload(kind: str) -> Callable[[Any], None]:
    def prepare(pipe: Any) -> None:
        if kind == "sequential":
            import accelerate

            for name, part in pipe.components.items():
                if isinstance(part, torch.nn.Module) and name not in ("safety_checker",):
                    accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))
            pipe._all_hooks = []
        else:
            pipe.enable_group_offload(
                onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind,
                num_blocks_per_group=1 if kind == "block_level" else None,
            )  # fmt: skip

    return prepare


def _layerwise(pipe: Any) -> None:
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)


_WAYS: dict[str, Callable[[Any], None]] = {
    "sequential offload": _offload("sequential"),
    "group offload by leaf": _offload("leaf_level"),
    "group offload by block": _offload("block_level"),
    "layerwise casting": _layerwise,
    "tiled and sliced decoding": lambda pipe: (pipe.vae.enable_tiling(), pipe.vae.enable_slicing()),
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "channels last": lambda pipe: denoiser(pipe).to(memory_format=torch.channels_last),
    "fused projections": lambda pipe: denoiser(pipe).fuse_qkv_projections(),
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
}
_UNETS = "SD", "SDXL", "ControlNet"
_ONLY = {
    "channels last": (*_UNETS, "SD3", "FLUX.1"), "fused projections": (*_UNETS, "SD3", "FLUX.1"),
    "FreeU": _UNETS, "attention slicing": _UNETS,
}  # fmt: skip


def _bf16(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def _fits(most: int) -> Callable[[Any], None]:
    """Runs out of memory in a call of more candidates than `most`; guidance doubles the rows."""

    def prepare(pipe: Any) -> None:
        rows = most * (2 if pipe.__class__.__name__ not in ("FluxPipeline", "WanPipeline") else 1)

        def check(module: Any, args: Any, kwargs: Any) -> None:
            given = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "sample"]
            if len(given) > rows:
                pipe.refused = getattr(pipe, "refused", 0) + 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        denoiser(pipe).register_forward_pre_hook(check, with_kwargs=True)

    return prepare


def _one_only(pipe: Any) -> None:
    def check(module: Any, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "sample"]
        if len(given) > (2 if pipe.__class__.__name__ not in ("FluxPipeline", "WanPipeline") else 1):
            raise ValueError("shapes do not fit")

    denoiser(pipe).register_forward_pre_hook(check, with_kwargs=True)


def _wave(most: int) -> Callable[[Ran], Iterator[str]]:
    def check(ran: Ran) -> Iterator[str]:
        for result in ran.results:
            if result.cost.largest_wave != most:
                yield f"batches of {result.cost.largest_wave} where {most} fit"
            if len(result.notes) < 1:
                yield "smaller batches, and not a word of it"

    return check


def _no_retry(ran: Ran) -> Iterator[str]:
    if ran.pipe.refused > 1:
        yield f"{ran.pipe.refused} batches were too large, though the first call had found out what fits"


def _ranked(n: int = 4, rung: float = RUNG) -> list[int]:
    """Seeds in the order of scorer "random", best first."""
    stage = SimpleNamespace(candidates=candidates_of("a cat", n), rung=rung)
    scores = RandomScorer()(stage).tolist()  # type: ignore[arg-type]
    return sorted(range(n), key=scores.__getitem__, reverse=True)


def _know_seeds(pipe: Any) -> None:
    """The pipeline's `seeds` are those of its present batch, in order."""
    usual = pipe.prepare_latents
    place = list(inspect.signature(usual).parameters).index("generator")

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        generators = kwargs["generator"] if "generator" in kwargs else args[place]
        pipe.seeds = [g.initial_seed() for g in (generators if isinstance(generators, list) else [generators])]
        return usual(*args, **kwargs)

    pipe.prepare_latents = prepare_latents


def _nan(at: int) -> Callable[[Any], None]:
    """The latents of the candidate that scores best are not finite from step `at` on."""

    def prepare(pipe: Any) -> None:
        _know_seeds(pipe)
        kind = type(pipe.scheduler)

        def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            output = kind.step(self, model_output, timestep, sample, *args, **kwargs)
            done = [float(each) for each in self.timesteps].index(float(timestep)) + 1
            if done >= at and _ranked()[0] in pipe.seeds:
                output[0][pipe.seeds.index(_ranked()[0])] = float("nan")
            return output

        pipe.scheduler.__class__ = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})

    return prepare


def _next_is_kept(flag: str) -> Callable[[Ran], Iterator[str]]:
    def check(ran: Ran) -> Iterator[str]:
        (result,), (best, second, *_) = ran.results, _ranked()
        if [c.seed for c in result.kept] != [second]:
            yield f"seeds {[c.seed for c in result.kept]} were kept, and {second} is the next best after {best}"
        flags = {c.seed: c.flags for c in result.candidates if c.flags}
        if flags != {best: [flag]}:
            yield f"flags {flags}"

    return check


class SafetyChecker(torch.nn.Module):
    """Blacks out the picture of the candidate that scores best."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.__dict__["pipe"] = pipe

    def forward(self, clip_input: Any, images: Any) -> tuple[Any, list[bool]]:
        bad = [seed == _ranked()[0] for seed in self.pipe.seeds]
        return torch.stack([image * (not each) for image, each in zip(images, bad, strict=True)]), bad


class Features(dict[str, Any]):
    def __call__(self, images: Any, return_tensors: str) -> "Features":
        self.pixel_values = torch.zeros(len(images), 3, 8, 8)
        return self

    def to(self, *args: Any) -> "Features":
        return self


def _safety(pipe: Any) -> None:
    _know_seeds(pipe)
    pipe.safety_checker, pipe.feature_extractor = SafetyChecker(pipe).eval(), Features()
