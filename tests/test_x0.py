"""x0_prediction gives back a planted x0 at every call of every scheduler, and leaves the scheduler alone.

The noise level comes from the timestep the denoiser is told, never from the scheduler's step index: that is
the second, independent way to the same number.
"""

import copy
import importlib.util
import sys
import types
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from probeselect.core.errors import ProbeSelectError
from probeselect.rollout.x0 import x0_prediction

# diffusers hands torch tensors to numpy in ways that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = 10
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAIN_ALPHAS = 1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
TRAIN_SIGMAS = ((1 - np.cumprod(TRAIN_ALPHAS)) / np.cumprod(TRAIN_ALPHAS)) ** 0.5

ALL = ("epsilon", "v_prediction", "sample")
NO_SAMPLE = ("epsilon", "v_prediction")
NOISE_SOLVER = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
# (scheduler, how x is made of x0 and eps, extra config, prediction types its step accepts)
DIFFUSION: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    ("DDIMScheduler", "unit", {}, ALL),
    ("DDIMScheduler", "unit", {"timestep_spacing": "trailing"}, ALL),
    ("DDPMScheduler", "unit", {}, ALL),
    ("PNDMScheduler", "unit", {"skip_prk_steps": True}, NO_SAMPLE),
    ("PNDMScheduler", "unit", {"skip_prk_steps": False}, NO_SAMPLE),
    ("LCMScheduler", "unit", {}, ALL),
    ("TCDScheduler", "unit", {}, ALL),
    ("DPMSolverMultistepScheduler", "unit", {}, ALL),
    ("DPMSolverMultistepScheduler", "unit", {"algorithm_type": "sde-dpmsolver++"}, ALL),
    ("DPMSolverMultistepScheduler", "unit", NOISE_SOLVER, ALL),
    ("DPMSolverSinglestepScheduler", "unit", {}, ALL),
    ("UniPCMultistepScheduler", "unit", {}, ALL),
    ("UniPCMultistepScheduler", "unit", {"predict_x0": False}, ALL),
    ("SASolverScheduler", "unit", {}, ALL),
    ("DEISMultistepScheduler", "unit", {}, ALL),
    ("EulerDiscreteScheduler", "additive", {}, ALL),
    ("EulerDiscreteScheduler", "additive", {"use_karras_sigmas": True}, ALL),
    ("EulerAncestralDiscreteScheduler", "additive", {}, NO_SAMPLE),
    ("HeunDiscreteScheduler", "additive", {}, ALL),
    ("LMSDiscreteScheduler", "additive", {}, ALL),
    ("KDPM2DiscreteScheduler", "additive", {}, NO_SAMPLE),
    ("KDPM2AncestralDiscreteScheduler", "additive", {}, NO_SAMPLE),
    ("DPMSolverSDEScheduler", "additive", {}, NO_SAMPLE),
]
CASES = [(*row[:3], kind) for row in DIFFUSION for kind in row[3]]


def planted(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 2, 4, 3, 3, generator=draw)
    return x0, eps


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def checked(scheduler: Any, out: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Return the x0-prediction; the call must leave the scheduler and its arguments as they were."""
    before = copy.deepcopy((vars(scheduler), out, x))
    x0 = x0_prediction(scheduler, out, t, x)
    assert before[0].keys() == vars(scheduler).keys()
    changed = [key for key, value in before[0].items() if not same(value, getattr(scheduler, key))]
    assert not changed
    assert same(before[1], out) and same(before[2], x)
    return x0


def build(name: str, **config: Any) -> Any:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(STEPS)
    return scheduler


def build_sde(monkeypatch: pytest.MonkeyPatch, **config: Any) -> Any:
    # torchsde only draws this scheduler's noise, so a stand-in is enough where it is not installed.
    if importlib.util.find_spec("torchsde") is None:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    scheduler: Any = DPMSolverSDEScheduler(**config)
    scheduler.set_timesteps(STEPS)
    scheduler.noise_sampler = lambda sigma, sigma_next: torch.zeros(())
    return scheduler


@pytest.mark.parametrize(("name", "made", "config", "kind"), CASES)
def test_planted_x0_comes_back_at_every_call(
    name: str, made: str, config: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**BETAS, "prediction_type": kind, **config}
    sde = name == "DPMSolverSDEScheduler"
    scheduler = build_sde(monkeypatch, **options) if sde else build(name, **options)
    assert len(scheduler.timesteps) >= STEPS
    for call, t in enumerate(scheduler.timesteps):
        x0, eps = planted(call)
        level = float(np.exp(np.interp(float(t), np.arange(1000), np.log(TRAIN_SIGMAS))))
        alpha = (level**2 + 1) ** -0.5
        sigma = level * alpha
        unit = alpha * x0 + sigma * eps
        x = unit if made == "unit" else unit / alpha
        out = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[kind]
        torch.testing.assert_close(checked(scheduler, out, t, x), x0, rtol=2e-4, atol=2e-4)
        scheduler.step(out, t, x)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_family(name: str, kind: str) -> None:
    scheduler = build(name, prediction_type=kind, sigma_data=0.7, sigma_min=0.05, sigma_max=20.0)
    for t in scheduler.timesteps:
        x0, eps = planted()
        level = float(torch.exp(4 * t))  # the timestep is ln(sigma) / 4
        x = x0 + level * eps
        norm = (level**2 + 0.7**2) ** 0.5
        sign = 1 if kind == "epsilon" else -1
        out = sign * (x0 - 0.7**2 / norm**2 * x) / (level * 0.7 / norm)
        torch.testing.assert_close(checked(scheduler, out, t, x), x0, rtol=1e-3, atol=1e-3)
        scheduler.step(out, t, x)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchLCMScheduler", {}),
    ],
)
def test_flow_matching(name: str, config: dict[str, Any]) -> None:
    scheduler = build(name, **config)
    for call, t in enumerate(scheduler.timesteps):
        x0, eps = planted(call)
        level = float(t) / 1000
        noise_share = 1 - level if config.get("invert_sigmas") else level
        x = (1 - noise_share) * x0 + noise_share * eps
        velocity = x0 - eps if config.get("invert_sigmas") else eps - x0
        torch.testing.assert_close(checked(scheduler, velocity, t, x), x0, rtol=1e-5, atol=1e-5)
        scheduler.step(velocity, t, x)


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "SASolverScheduler",
        "DEISMultistepScheduler",
    ],
)
def test_flow_sigmas_of_the_diffusion_solvers(name: str) -> None:
    scheduler = build(name, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    for call, t in enumerate(scheduler.timesteps):
        x0, eps = planted(call)
        # These round their timesteps to whole numbers, so the sigma is read by the count of calls instead.
        level = float(scheduler.sigmas[call])
        assert abs(level - float(t) / 1000) < 1.1e-3
        x = (1 - level) * x0 + level * eps
        torch.testing.assert_close(checked(scheduler, eps - x0, t, x), x0, rtol=1e-5, atol=1e-5)
        scheduler.step(eps - x0, t, x)


def test_first_call_in_the_middle_of_a_schedule_with_equal_timesteps() -> None:
    """Image-to-image pipelines start late: step_index is None and only the begin index tells the sigma."""
    scheduler = build("DPMSolverMultistepScheduler", **BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(100)
    begin = int((scheduler.timesteps.diff() == 0).nonzero()[0])
    assert scheduler.sigmas[begin] != scheduler.sigmas[begin + 1]
    scheduler.set_begin_index(begin)
    x0, eps = planted()
    t = scheduler.timesteps[begin]
    x = scheduler.add_noise(x0, eps, t[None])
    torch.testing.assert_close(checked(scheduler, eps, t, x), x0, rtol=1e-5, atol=1e-5)


def test_learned_variance_channels_are_ignored_and_half_precision_stays() -> None:
    scheduler = build("DDPMScheduler", **BETAS, variance_type="learned_range")
    x0, eps = planted()
    t = scheduler.timesteps[4]
    x = scheduler.add_noise(x0, eps, t[None]).half()
    out = torch.cat([eps, torch.full_like(eps, torch.nan)], dim=1).half()
    got = checked(scheduler, out, t, x)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), x0, rtol=0, atol=2e-2)


def test_subclass_of_a_known_scheduler_is_known() -> None:
    mine: Any = type("Mine", (diffusers.EulerDiscreteScheduler,), {})
    scheduler = mine(**BETAS)
    scheduler.set_timesteps(STEPS)
    x0, eps = planted()
    t = scheduler.timesteps[0]
    x = scheduler.add_noise(x0, eps, t[None])
    torch.testing.assert_close(x0_prediction(scheduler, eps, t, x), x0, rtol=1e-4, atol=1e-4)


def test_unknown_scheduler_and_prediction_type_are_one_line_errors() -> None:
    x0, eps = planted()
    unknown = build("DDIMInverseScheduler")
    with pytest.raises(ProbeSelectError, match=r"^scheduler DDIMInverseScheduler: .*use one of DDIMSch"):
        x0_prediction(unknown, eps, torch.tensor(1), x0)
    euler = build("EulerDiscreteScheduler", prediction_type="other")
    with pytest.raises(ProbeSelectError, match=r"^scheduler EulerDiscreteScheduler: .*type 'other'$"):
        x0_prediction(euler, eps, euler.timesteps[0], x0)
