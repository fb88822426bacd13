"""Survivors are the stock pipeline's pictures, whatever the scheduler, the waves and the rungs."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    SD3Transformer2DModel,
    UniPCMultistepScheduler,
)
from tiny import TINY, tiny_chroma, tiny_flux, tiny_lumina2, tiny_pixart, tiny_sd, tiny_sd3, tiny_sdxl, tiny_z_image

from probeselect.backbones.loading import load_backbone
from probeselect.backbones.taps import X0
from probeselect.core.candidates import Candidate, candidates_of
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.rollout.rollout import Tally, rollout

PROMPTS = ["a cat", "b dog"]
ARGUMENTS = {"num_inference_steps": 8, "output_type": "pt", "height": 16, "width": 24}
TOLERANCE = 1e-5  # of pictures in [0, 1], fp32; the promise is 1e-3
SD_SCHEDULERS = {
    "DDIM": DDIMScheduler,
    "DPM++ 2M": DPMSolverMultistepScheduler,
    "SDE-DPM++": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "UniPC": UniPCMultistepScheduler,
    "PNDM": PNDMScheduler,
    "Euler": EulerDiscreteScheduler,
    "Euler a": EulerAncestralDiscreteScheduler,
    "Heun": HeunDiscreteScheduler,
    "LMS": LMSDiscreteScheduler,
    "DDPM": DDPMScheduler,
    "KDPM2 a": KDPM2AncestralDiscreteScheduler,
    "SA-Solver": SASolverScheduler,
    "LCM": LCMScheduler,
}


def stock(pipe, candidate: Candidate, **arguments) -> torch.Tensor:
    """The stock pipeline's picture of one candidate alone, [3, H, W]."""
    generator = torch.Generator("cpu").manual_seed(candidate.seed)
    with torch.no_grad():
        return pipe(candidate.prompt, generator=generator, **{**ARGUMENTS, **arguments}).images[0]


def survivors(pipe, *, rungs=(0.25, 0.5), keep=((1, 3, 5), (0, 2)), batch_size=2, tally=None, **arguments):
    """Pictures of those who are kept, by candidate: n = 3 of two prompts, from waves of 2."""
    backbone, decisions = load_backbone(pipe), iter(keep)
    stages = rollout(
        backbone, candidates_of(PROMPTS, 3), rungs, taps=(*backbone.taps, X0), batch_size=batch_size,
        tally=tally, keep=lambda stage: next(decisions), **{**ARGUMENTS, **arguments},
    )  # fmt: skip
    for stage in stages:
        if stage.rung == 1:
            return dict(zip(stage.candidates, stage.pictures, strict=True))


def worst_difference(pipe, **arguments) -> float:
    pictures = survivors(pipe, **arguments)
    assert [(c.group, c.seed) for c in pictures] == [(0, 1), (1, 2)]
    return max(float((picture - stock(pipe, c, **arguments)).abs().max()) for c, picture in pictures.items())


@pytest.mark.parametrize("name", SD_SCHEDULERS)
def test_sd_survivors_equal_the_stock_pipeline(name):
    assert worst_difference(tiny_sd(SD_SCHEDULERS[name]()), guidance_scale=4.0) < TOLERANCE


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler],
)
def test_sd3_survivors_equal_the_stock_pipeline(scheduler):
    assert worst_difference(tiny_sd3(scheduler()), guidance_scale=4.0) < TOLERANCE


@pytest.mark.parametrize("build", [tiny_flux, tiny_sdxl, tiny_chroma, tiny_lumina2, tiny_pixart, tiny_z_image])
def test_survivors_of_other_families_equal_the_stock_pipeline(build):
    arguments = {"use_resolution_binning": False} if build is tiny_pixart else {}
    if build in (tiny_lumina2,):
        arguments = {"height": 32, "width": 32}
    assert worst_difference(build(), **arguments) < TOLERANCE


def test_stochastic_flow_noise_belongs_to_the_candidate():
    """SD3 draws this noise from the global generator; here it is the candidate's own, so batches cannot matter."""
    pipe = tiny_sd3(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    small, large = survivors(pipe, batch_size=1), survivors(pipe, batch_size=None)
    assert max(float((small[c] - large[c]).abs().max()) for c in small) < TOLERANCE


class GlobalNoise(DDIMScheduler):
    """Draws from torch's global generator in every step, as DPMSolverSDE does without a seed."""

    def step(self, model_output, timestep, sample, **more):
        return super().step(model_output, timestep, sample + 0.1 * torch.randn(sample.shape), **more)


def test_noise_that_no_generator_gives_is_said_and_made_the_candidates_own():
    pipe, tally = tiny_sd(GlobalNoise()), Tally()
    state = torch.get_rng_state()
    pictures = survivors(pipe, batch_size=None, tally=tally)
    assert torch.equal(state, torch.get_rng_state())  # the user's own noise is untouched
    assert tally.largest_wave == 1 and any("not reproducible by seed" in note for note in tally.notes)
    for candidate, picture in pictures.items():
        torch.manual_seed(candidate.seed)
        assert float((picture - stock(pipe, candidate)).abs().max()) < TOLERANCE


def test_cost_counts_computed_rows_and_encoders_run_once_per_prompt():
    tally = Tally()
    survivors(tiny_sd(DDIMScheduler()), guidance_scale=4.0, tally=tally)
    assert tally.denoiser_rows == 6 * 2 + 3 * 2 + 2 * 4
    assert tally.encoder_rows == len(PROMPTS) + 1  # and the empty negative prompt
    assert tally.largest_wave == 2
    latents = 2 * 4 * 8 * 12 * 4  # guidance parts x channels x height x width x bytes
    assert tally.prefix_bytes == max(6 * 2, 3 * 4) * latents


def test_heun_calls_are_counted_one_by_one():
    tally = Tally()
    survivors(tiny_sd(HeunDiscreteScheduler()), tally=tally)
    assert tally.total_steps == 15
    assert tally.denoiser_rows == 6 * 4 + 3 * (8 - 4) + 2 * (15 - 8)


def test_per_prompt_negative_prompts_reach_their_candidates():
    pipe, negatives = tiny_sd(DDIMScheduler()), ["x", "y z"]
    pictures = survivors(pipe, guidance_scale=4.0, negative_prompt=negatives)
    for candidate, picture in pictures.items():
        alone = stock(pipe, candidate, guidance_scale=4.0, negative_prompt=negatives[candidate.group])
        assert float((picture - alone).abs().max()) < TOLERANCE


def test_guidance_turned_off():
    assert worst_difference(tiny_sd(DDIMScheduler()), guidance_scale=1.0) < TOLERANCE


def test_previews_are_the_decoded_x0_prediction():
    """At the last step but one of DDIM without noise, the preview is nearly the picture; early it is not."""
    pipe, previews = tiny_sd(DDIMScheduler()), {}
    for stage in rollout(load_backbone(pipe), candidates_of("a cat", 2), [0.125, 0.875], previews=True, **ARGUMENTS):
        previews[stage.rung] = stage.pictures
    finished = torch.stack(list(previews[1.0]))
    early, late = (torch.stack([to_tensor(p) for p in previews[rung]]) for rung in (0.125, 0.875))
    assert (late - finished).abs().mean() < (early - finished).abs().mean()


def to_tensor(picture) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture)).permute(2, 0, 1) / 255  # [3, H, W]


def state_of(pipe):
    modules = [m for c in pipe.components.values() if isinstance(c, torch.nn.Module) for m in c.modules()]
    return (
        id(pipe.scheduler),
        {key: repr(value) for key, value in vars(pipe.scheduler).items()},
        [sorted(vars(module)) for module in modules],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules],
        pipe.__dict__.get("_progress_bar_config"),
    )


class Interrupt(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("error", [None, RuntimeError, Interrupt])
def test_the_pipeline_is_left_as_it_was_found(error):
    pipe = tiny_sd(DDIMScheduler())
    before = copy.deepcopy(state_of(pipe)[1:]), id(pipe.scheduler)
    calls = []

    def on_step(done: int, planned: int) -> None:
        calls.append(done)
        if error and len(calls) == 5:
            raise error("planted")

    try:
        survivors(pipe, progress=on_step)
    except (RuntimeError, Interrupt):
        assert error is not None
    assert len(calls) >= 5
    assert (state_of(pipe)[1:], id(pipe.scheduler)) == before


def test_a_wave_that_does_not_fit_is_halved():
    pipe, tally = tiny_sd(DDIMScheduler()), Tally()
    usual = pipe.unet.forward

    def short_of_memory(sample, *args, **kwargs):
        if len(sample) > 2 * 2:  # guided: two rows a candidate
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(sample, *args, **kwargs)

    pipe.unet.forward = short_of_memory
    pictures = survivors(pipe, batch_size=None, tally=tally, guidance_scale=4.0)
    assert tally.wave_halvings == 2 and tally.largest_wave <= 2
    assert tally.denoiser_rows == 6 * 2 + 3 * 2 + 2 * 4
    for candidate, picture in pictures.items():
        assert float((picture - stock(pipe, candidate, guidance_scale=4.0)).abs().max()) < TOLERANCE


def test_one_candidate_that_does_not_fit_is_a_clear_stop():
    pipe = tiny_sd(DDIMScheduler())

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pipe.unet.forward = no_memory
    with pytest.raises(ProbeSelectError, match="one candidate"):
        survivors(pipe)


@pytest.mark.parametrize("name", ["generator", "latents", "num_images_per_prompt", "no_such_argument"])
def test_arguments_that_cannot_be_are_refused_before_any_work(name):
    pipe = tiny_sd(DDIMScheduler())
    pipe.unet.forward = None  # any work would fail
    with pytest.raises(UsageError, match=name):
        survivors(pipe, **{name: 1})


def test_what_is_not_asked_for_is_not_computed(monkeypatch):
    """A scorer without taps and previews needs no x0-prediction, so it works under any scheduler."""
    monkeypatch.setattr("probeselect.rollout.replay.x0_prediction", None)
    for stage in rollout(load_backbone(tiny_sd(DDIMScheduler())), candidates_of("a", 2), [0.5], **ARGUMENTS):
        assert stage.maps == {}


def test_a_pipeline_of_pipelines_is_followed_into_the_one_with_the_loop():
    build, arguments = TINY["Kandinsky 2.2"]
    pipe, tally = build(), Tally()
    stages = rollout(
        load_backbone(pipe), candidates_of("a", 3), [0.5], keep=lambda _: [1], tally=tally,
        **{**arguments, "output_type": "pt"},
    )  # fmt: skip
    next(stages)
    (picture,) = next(stages).pictures
    assert tally.denoiser_rows == 3 * 2 + 2
    generator = torch.Generator("cpu").manual_seed(1)
    alone = pipe("a", generator=generator, **{**arguments, "output_type": "pt"}).images[0]
    assert float((picture - alone).abs().max()) < 1e-4


def test_two_rungs_on_one_step_are_refused():
    with pytest.raises(UsageError, match="further apart"):
        survivors(tiny_sd(DDIMScheduler()), rungs=(0.25, 0.26))


def test_progress_counts_rows_and_ends_at_the_plan():
    seen = []
    survivors(tiny_sd(DDIMScheduler()), progress=lambda done, planned: seen.append((done, planned)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0][1] == 6 * 8 and seen[-1] == (26, 26)


def test_model_cpu_offload_hooks_survive(monkeypatch):
    """accelerate renews its hooks after every call of the pipeline; ours must not put stale ones back."""
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny_sd(DDIMScheduler())
    expected = {c: stock(pipe, c) for c in candidates_of(PROMPTS, 3)}
    hooks = []
    for component in (pipe.text_encoder, pipe.unet, pipe.vae):
        _, hook = accelerate.cpu_offload_with_hook(component, "cpu", prev_module_hook=hooks[-1] if hooks else None)
        hooks.append(hook)
    renewed = []

    def renew():
        accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
        accelerate.cpu_offload_with_hook(pipe.unet, "cpu")
        renewed.append(pipe.unet.forward)

    monkeypatch.setattr(pipe, "maybe_free_model_hooks", renew)
    pictures = survivors(pipe)
    assert renewed and pipe.unet.forward is renewed[-1]
    assert max(float((p - expected[c]).abs().max()) for c, p in pictures.items()) < TOLERANCE


def one_block_sd3():
    """As little as dynamo can be given to trace: it takes seconds a hundred operations."""
    pipe = tiny_sd3()
    torch.manual_seed(0)
    pipe.transformer = SD3Transformer2DModel.from_config(pipe.transformer.config, num_layers=1).eval()
    return pipe


@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_compiled_denoisers(way):
    """Traced twice, with the tap's hooks and without; the survivors come from waves of two."""
    pipe = one_block_sd3()
    expected = {c: stock(pipe, c, num_inference_steps=4) for c in candidates_of(PROMPTS, 3)}
    torch._dynamo.reset()
    if way == "in place":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    pictures = survivors(pipe, rungs=(0.5,), keep=((1, 4),), num_inference_steps=4)
    assert len(pictures) == 2 and torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert max(float((p - expected[c]).abs().max()) for c, p in pictures.items()) < 1e-4
