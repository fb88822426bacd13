"""Schedulers, numbers of steps, rungs and previews."""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import diffusers

from compat.of_zoo import cases, of_case
from compat.subjects import Subject, subjects
from compat.trial import EXACT, REFUSED, Trial

SCHEDULERS = "Schedulers"
FEW = "Few steps, rungs and batches"
PREVIEWS = "Previews"

_OF_SD: dict[str, Callable[..., Any]] = {
    name.removesuffix("Scheduler").removesuffix("Discrete"): getattr(diffusers, name)
    for name in (
        "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
        "DEISMultistepScheduler", "IPNDMScheduler", "LCMScheduler", "TCDScheduler", "DDIMParallelScheduler",
        "DDPMParallelScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler",
    )
    if hasattr(diffusers, name)
}  # fmt: skip
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SDE-DPM++": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M, Karras sigmas": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "DPM++ 2M, exponential sigmas": ("DPMSolverMultistep", {"use_exponential_sigmas": True}),
    "DPM++ 2M, Lu lambdas": ("DPMSolverMultistep", {"use_lu_lambdas": True, "euler_at_final": True}),
    "DPM++ of third order": ("DPMSolverMultistep", {"solver_order": 3}),
    "Euler, Karras sigmas": ("Euler", {"use_karras_sigmas": True}),
    "Heun, Karras sigmas": ("Heun", {"use_karras_sigmas": True}),
    "UniPC, Karras sigmas": ("UniPCMultistep", {"use_karras_sigmas": True}),
    "DDIM, zero terminal SNR": ("DDIM", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    "PNDM without PRK steps": ("PNDM", {"skip_prk_steps": True}),
}
_OF_FLOW: dict[str, Callable[[], Any]] = {
    "FlowMatchEuler, stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "FlowMatchEuler, Karras sigmas": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    "FlowMatchHeun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(),
    "FlowMatchLCM": lambda: diffusers.FlowMatchLCMScheduler(),
    "UniPC for flows": lambda: diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    ),
    "DPM++ 2M for flows": lambda: diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    ),
    "SDE-DPM++ for flows": lambda: diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, algorithm_type="sde-dpmsolver++"
    ),
}
_NO_FLUX = {"FlowMatchHeun", "FlowMatchLCM"}  # the stock pipeline gives its own sigmas, and they take none


def trials() -> Iterator[Trial]:
    known = subjects()
    for name, kind in _OF_SD.items():
        for subject in ("SD", "img2img"):
            yield _with(known[subject], name, kind)
    for label, (name, config) in _VARIANTS.items():
        yield _with(known["SD"], label, lambda k=_OF_SD[name], c=config: k(**c))
    if find_spec("torchsde"):
        yield _with(known["SD"], "DPMSolverSDE", diffusers.DPMSolverSDEScheduler)
    for name, make in _OF_FLOW.items():
        for subject in ("SD3", "FLUX.1", "Wan"):
            if not (subject == "FLUX.1" and name in _NO_FLUX):
                yield _with(known[subject], name, make)
    for steps in (1, 2, 3, 4, 6):
        for subject in ("SD", "SD3", "img2img", "ControlNet"):
            expect = (REFUSED,) if steps == 1 else (EXACT,)
            yield known[subject].trial(
                f"{steps} step{'s' * (steps > 1)}", FEW, {"num_inference_steps": steps}, rungs=(0.2,), expect=expect
            )
    for subject in ("SD", "SDXL", "SD3", "FLUX.1", "Wan", "ControlNet", "img2img"):
        yield known[subject].trial("three rungs", FEW, rungs=(0.25, 0.5, 0.75), call={"policy": "halving"}, n=5, k=1)
        yield known[subject].trial("one candidate a call", FEW, batch_size=1, expect=(EXACT,))
        yield known[subject].trial("three candidates a call", FEW, batch_size=3, n=5, expect=(EXACT,))
        yield known[subject].trial("a second call", FEW, again=True, expect=(EXACT,))
        yield known[subject].trial("five to one", FEW, n=5, k=1, expect=(EXACT,))
        yield known[subject].trial("all finished", FEW, n=3, k=3, rungs=(0.5,), call={"policy": "all"})
        yield known[subject].trial("seeds far apart", FEW, n=3, k=2, call={"seeds": [7, 2**40 + 1, 123]})
        for name, kind in (("Heun", diffusers.HeunDiscreteScheduler), ("PNDM", diffusers.PNDMScheduler)):
            if subject in ("SD", "ControlNet"):
                yield _with(known[subject], f"{name}, previews", kind, group=PREVIEWS, call={"previews": True})
    met: Counter[str] = Counter()
    for _, case in cases():
        met[case.name] += 1
        other = f" ({met[case.name]})" if met[case.name] > 1 else ""
        yield of_case(PREVIEWS, case, "previews" + other, {}, call={"previews": True})


def _with(subject: Subject, kind: str, scheduler: Callable[[], Any], group: str = SCHEDULERS, **options: Any) -> Trial:
    def prepare(pipe: Any) -> None:
        pipe.scheduler = scheduler()

    return subject.trial(kind, group, prepare=prepare, **options)
