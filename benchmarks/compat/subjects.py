"""Representative pipelines, on which kinds are tried that concern no class in particular."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from tiny import tiny_flux, tiny_sd, tiny_sd3, tiny_sdxl
from zoo.case import Case
from zoo.transformer_parts import lively

from compat.trial import Trial

STEPS = 8
RUNG = 0.25


@dataclass(frozen=True)
class Subject:
    """A pipeline class with a guided call of 8 steps."""

    name: str
    build: Callable[[], Any]
    arguments: dict[str, Any]

    def trial(self, kind: str, group: str, more: dict[str, Any] | None = None, **options: Any) -> Trial:
        arguments = {**self.arguments, **(more or {})}
        return Trial(self.name, kind, group, self.build, arguments, **{"rungs": (RUNG,), **options})


def _lively(build: Callable[..., Any], scale: float = 2.0) -> Callable[..., Any]:
    """Random transformers of stock classes hardly see their inputs unless their weights are woken."""

    def lively_pipe(*args: Any) -> Any:
        pipe = build(*args)
        lively(pipe.transformer, scale)
        return pipe

    return lively_pipe


def denoiser(pipe: Any) -> Any:
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def zoo_case(module: str, name: str) -> Case:
    return next(case for case in import_module(f"zoo.{module}").CASES if case.name == name)


def _of_zoo(module: str, name: str, **more: Any) -> Subject:
    case = zoo_case(module, name)
    return Subject(name, case.build, {**case.arguments, "num_inference_steps": STEPS, **more})


lively_sd3, lively_flux = _lively(tiny_sd3), _lively(tiny_flux)


@lru_cache
def subjects() -> dict[str, Subject]:
    sized = {"num_inference_steps": STEPS, "height": 16, "width": 16}
    guided = {**sized, "guidance_scale": 4.0}
    return {
        "SD": Subject("StableDiffusionPipeline", tiny_sd, guided),
        "SDXL": Subject("StableDiffusionXLPipeline", tiny_sdxl, guided),
        "SD3": Subject("StableDiffusion3Pipeline", lively_sd3, {**guided, "max_sequence_length": 16}),
        "FLUX.1": Subject("FluxPipeline", lively_flux, {**sized, "guidance_scale": 3.5, "max_sequence_length": 16}),
        "Wan": _of_zoo("video", "WanPipeline"),
        "ControlNet": _of_zoo("stable_diffusion", "StableDiffusionControlNetPipeline"),
        "img2img": _of_zoo("stable_diffusion", "StableDiffusionImg2ImgPipeline", strength=1.0),
        "inpaint": _of_zoo("stable_diffusion", "StableDiffusionInpaintPipeline", strength=1.0),
    }
