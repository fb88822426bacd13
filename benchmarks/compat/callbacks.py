"""Callbacks at the end of a step: each is to see every step of a candidate once, with true latents."""

from collections.abc import Callable, Iterator
from typing import Any

import diffusers.callbacks as stock
import torch

from compat.subjects import STEPS, Subject, subjects, zoo_case
from compat.trial import EXACT, Ran, Trial

GROUP = "Callbacks"


def trials() -> Iterator[Trial]:
    known = subjects()
    for name in ("SD", "SDXL", "SD3", "FLUX.1", "Wan", "ControlNet", "img2img"):
        for kind, call in (("", {}), (", previews", {"previews": True})):
            yield known[name].trial(
                f"one that looks{kind}", GROUP, fresh=_looking, check=_once_each(known[name]),
                call=call, expect=(EXACT,),
            )  # fmt: skip
        yield known[name].trial("one that changes the latents", GROUP, fresh=_end(_add), expect=(EXACT,))
        yield known[name].trial("one that interrupts", GROUP, fresh=_end(_interrupt), counted=False, rungs=(0.25,))
    for name in ("SD", "SDXL", "SD3"):
        yield known[name].trial("one that changes the guidance", GROUP, fresh=_end(_guidance), expect=(EXACT,))
    for kind, old in (("callback of old", _old), ("callback of old, every second step", _old_every_second)):
        yield known["SD"].trial(kind, GROUP, fresh=old, expect=(EXACT,))
    cutoffs: dict[str, tuple[str, Callable[[], Any]]] = {
        "SD": ("SDCFGCutoffCallback", lambda: stock.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=4)),
        "SDXL": ("SDXLCFGCutoffCallback", lambda: stock.SDXLCFGCutoffCallback(cutoff_step_ratio=0.5)),
        "SD3": ("SD3CFGCutoffCallback", lambda: stock.SD3CFGCutoffCallback(cutoff_step_ratio=0.5)),
    }
    for name, (kind, make) in cutoffs.items():
        for more, options in (
            ("", {}), (", previews", {"call": {"previews": True}}), (", before the rung", {"rungs": (0.75,)}),
            (", one candidate a call", {"batch_size": 1}),
        ):  # fmt: skip
            yield known[name].trial(
                f"{kind}{more}", GROUP, fresh=_given(make), counted=False, expect=(EXACT,), **options
            )
    both = _given(
        lambda: stock.MultiPipelineCallbacks(
            [
                stock.SDCFGCutoffCallback(cutoff_step_ratio=0.5),
                stock.IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5),
            ]
        )
    )
    for name, module in (("StableDiffusionPipeline", "ip_adapters"),):
        case = zoo_case(module, name)
        subject = Subject(name, case.build, {**case.arguments, "num_inference_steps": STEPS})
        yield subject.trial(
            "IPAdapterScaleCutoffCallback", GROUP, expect=(EXACT,),
            fresh=_given(lambda: stock.IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)),
        )  # fmt: skip
        yield subject.trial(
            "IPAdapterScaleCutoffCallback, two candidates a call, late rung", GROUP, expect=(EXACT,), rungs=(0.75,),
            batch_size=2, fresh=_given(lambda: stock.IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)),
        )  # fmt: skip
        yield subject.trial("two callbacks of diffusers", GROUP, fresh=both, counted=False)
    case = zoo_case("stable_diffusion_xl", "StableDiffusionXLControlNetPipeline")
    controlled = Subject(case.name, case.build, {**case.arguments, "num_inference_steps": STEPS})
    yield controlled.trial(
        "SDXLControlnetCFGCutoffCallback", GROUP, counted=False, expect=(EXACT,),
        fresh=_given(lambda: stock.SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=0.5)),
    )  # fmt: skip


def _given(make: Callable[[], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda pipe: {"callback_on_step_end": make()}


def _end(change: Callable[..., dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    return lambda pipe: {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents"]}


def _add(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {"latents": given["latents"] * (1 + 0.02 * step)}


def _interrupt(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
    if step == 5:
        pipe._interrupt = True
    return {}


def _guidance(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = 4.0 + step
    return {}


def _old(pipe: Any) -> dict[str, Any]:
    return {"callback": lambda step, timestep, latents: latents.mul_(1.02), "callback_steps": 1}


def _old_every_second(pipe: Any) -> dict[str, Any]:
    return {"callback": lambda step, timestep, latents: latents.mul_(1.05), "callback_steps": 2}


def _looking(pipe: Any) -> dict[str, Any]:
    return {"callback_on_step_end": Look(), "callback_on_step_end_tensor_inputs": ["latents"]}


class Look:
    def __init__(self) -> None:
        self.seen: list[tuple[int, torch.Tensor]] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        self.seen += [(step, row.clone()) for row in given["latents"]]
        return given


def _once_each(subject: Subject) -> Callable[[Ran], Iterator[str]]:
    """Every step of every candidate must have been seen once, with the latents that its stock run shows."""

    def check(ran: Ran) -> Iterator[str]:
        seen, wanted = ran.arguments["callback_on_step_end"].seen, []
        for candidate in (c for result in ran.results for c in result.candidates):
            look, generator = Look(), torch.Generator("cpu").manual_seed(candidate.seed)
            subject.build()(candidate.prompt, generator=generator, callback_on_step_end=look, **subject.arguments)
            wanted += look.seen[: candidate.completed_steps]
        if len(seen) != len(wanted):
            yield f"{len(seen)} steps were seen, of {len(wanted)}"
        for step, latents in wanted:
            near = 1e-4 * latents.abs().max()
            if not any(each == step and (mine - latents).abs().max() <= near for each, mine in seen):
                yield f"step {step} of a candidate was not seen with its true latents"
                return

    return check
