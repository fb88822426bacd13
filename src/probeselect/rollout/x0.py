"""The clean latent that a scheduler's current model output implies.

Knows: how each diffusers scheduler writes a noisy sample as x0 plus noise, and the noise level of the call it
is about to make. Does not know: pipelines, candidates, the VAE. It reads the scheduler and never changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probeselect.core.errors import ProbeSelectError

# How a noisy sample x is made from a clean one x0, by scheduler class (subclasses follow their parent):
#   discrete  x = sqrt(a_t) x0 + sqrt(1 - a_t) eps, with a = alphas_cumprod and the timestep as index
#   rotated   x = alpha x0 + sigma eps, with both from the step's sigma through _sigma_to_alpha_sigma_t
#   additive  x = x0 + sigma eps
#   edm       additive, and the model output passes through the EDM preconditioning
#   flow      x = (1 - sigma) x0 + sigma eps, and the model output is the velocity dx / dsigma
_SPACES = {
    "DDIMScheduler": "discrete",
    "DDPMScheduler": "discrete",
    "PNDMScheduler": "discrete",
    "LCMScheduler": "discrete",
    "TCDScheduler": "discrete",
    "CogVideoXDDIMScheduler": "discrete",
    "CogVideoXDPMScheduler": "discrete",
    "DPMSolverMultistepScheduler": "rotated",
    "DPMSolverSinglestepScheduler": "rotated",
    "UniPCMultistepScheduler": "rotated",
    "SASolverScheduler": "rotated",
    "DEISMultistepScheduler": "rotated",
    "EulerDiscreteScheduler": "additive",
    "EulerAncestralDiscreteScheduler": "additive",
    "HeunDiscreteScheduler": "additive",
    "LMSDiscreteScheduler": "additive",
    "KDPM2DiscreteScheduler": "additive",
    "KDPM2AncestralDiscreteScheduler": "additive",
    "DPMSolverSDEScheduler": "additive",
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "FlowMatchLCMScheduler": "flow",
}

# The sigma of a second-order call at step index i, where it is not sigmas[i].
_MIDPOINTS: dict[str, Callable[[Any, int], Tensor]] = {
    "KDPM2DiscreteScheduler": lambda scheduler, i: scheduler.sigmas_interpol[i],
    "KDPM2AncestralDiscreteScheduler": lambda scheduler, i: scheduler.sigmas_interpol[i - 1],
    "DPMSolverSDEScheduler": lambda scheduler, i: scheduler.mid_point_sigma,
}


def x0_prediction(scheduler: Any, model_output: Tensor, timestep: Tensor | float, sample: Tensor) -> Tensor:
    """Return the clean latent implied by one model output, before the scheduler steps.

    The arguments are those of the coming `scheduler.step(model_output, timestep, sample)`: the guided model
    output and the pre-step sample, both [N, C, ...]. Channels beyond the sample's own (a learned variance)
    are ignored. Clipping, thresholding, churn and the boundary scalings of LCM are not applied.

    Returns:
        The x0-prediction [N, C, ...] with dtype and device of `sample`; computed in at least float32. It is
        not finite where the noise level leaves no signal (epsilon-prediction at zero terminal SNR).

    Raises:
        ProbeSelectError: the scheduler or its prediction type is not known here.
    """
    name = known_scheduler(scheduler)
    space = _SPACES[name]
    kind = "flow_prediction" if space == "flow" else scheduler.config.prediction_type
    dtype = torch.promote_types(sample.dtype, torch.float32)
    x, out = sample.to(dtype), model_output[:, : sample.shape[1]].to(dtype)

    if kind == "sample" and space != "edm":
        x0 = out
    elif kind == "flow_prediction" and space in ("flow", "rotated"):
        # Along the velocity to the end of the schedule: 0, or 1 where the scheduler inverts its sigmas.
        end = 1.0 if getattr(scheduler.config, "invert_sigmas", False) else 0.0
        x0 = x + (end - _sigma(scheduler, name, timestep)) * out
    elif kind in ("epsilon", "v_prediction") and space == "edm":
        x0 = scheduler.precondition_outputs(x, out, _sigma(scheduler, name, timestep))
    elif kind in ("epsilon", "v_prediction"):
        if space == "discrete":
            signal = scheduler.alphas_cumprod[timestep]
            alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        elif space == "rotated":
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(_sigma(scheduler, name, timestep))
        else:
            # v is defined on the sample scaled to unit variance, so scale first.
            level = _sigma(scheduler, name, timestep)
            alpha = (level**2 + 1) ** -0.5
            x, sigma = x * alpha, level * alpha
        x0 = (x - sigma * out) / alpha if kind == "epsilon" else alpha * x - sigma * out
    else:
        raise ProbeSelectError(f"scheduler {name}: no x0-prediction is known for prediction_type {kind!r}")
    return x0.to(sample.dtype)


def known_scheduler(scheduler: Any) -> str:
    """The name of the class whose x0-prediction is known. Raises ProbeSelectError where there is none."""
    name = next((base.__name__ for base in type(scheduler).__mro__ if base.__name__ in _SPACES), None)
    if name is None:
        own, known = type(scheduler).__name__, ", ".join(_SPACES)
        raise ProbeSelectError(f"scheduler {own}: no x0-prediction is known for it; use one of {known}")
    return name


def _sigma(scheduler: Any, name: str, timestep: Tensor | float) -> Tensor:
    """Return the sigma of the coming call, a scalar; the first call's index is found as `step` finds it."""
    index = scheduler.step_index
    if index is None:
        index = scheduler.begin_index
    if index is None:
        index = scheduler.index_for_timestep(timestep)
    if name in _MIDPOINTS and not scheduler.state_in_first_order:
        return _MIDPOINTS[name](scheduler, index)
    sigma: Tensor = scheduler.sigmas[index]
    return sigma
