"""Cases of the SDXL pipelines that take pictures, with the refiner, control nets of all kinds, PAG and adapters."""

from typing import Any

import diffusers
from tiny import HIDDEN, _seeded, tiny_sdxl

from zoo.case import Case
from zoo.pictures import assembled, configured, picture, rows, stirred, tensor
from zoo.stable_diffusion import (
    CONTROL,
    CROP,
    GUIDED,
    IMAGE_KINDS,
    MASKED,
    MASKED_LATENTS,
    NEGATIVE,
    PAG,
    SIZE,
    STRENGTHS,
    TENSOR_MASK,
    TWO,
    UNGUIDED,
    adapter,
    controlnet,
    controlnet_xs,
    controlnets,
)

PROMPT_EMBEDS = {
    "prompt embeds": {
        "prompt": None,
        "prompt_embeds": rows(1, 16, 2 * HIDDEN), "negative_prompt_embeds": rows(1, 16, 2 * HIDDEN, seed=1),
        "pooled_prompt_embeds": rows(1, HIDDEN), "negative_pooled_prompt_embeds": rows(1, HIDDEN, seed=1),
    }
}  # fmt: skip
SIZES = {
    "sizes and crops": {
        "original_size": (32, 24), "crops_coords_top_left": (4, 0), "target_size": (16, 16),
        "negative_original_size": (8, 8), "negative_target_size": (16, 16),
    }
}  # fmt: skip
ENDS = {"denoising_end 0.8": {"denoising_end": 0.8, "num_inference_steps": 10}}
STARTS = {"denoising_start": {"denoising_start": 0.5, "image": rows(1, 4, 8, 8)}}
LISTS = {
    "timesteps": {"timesteps": [900, 700, 500, 300, 100]},
    "sigmas": {"sigmas": [12.0, 6.0, 3.0, 1.0, 0.3]},
}
TWO_PROMPTS = {"second prompt": {"prompt_2": "a house", "negative_prompt": "a dog", "negative_prompt_2": "a tree"}}
CLIP_SKIP = {"clip_skip": {"clip_skip": 1}}
RESCALE = {"guidance_rescale": {"guidance_rescale": 0.7}}


def union(parts: dict[str, Any], seed: int = 0) -> Any:
    """A control net for several kinds of control pictures, of the unet's shape."""
    kind = diffusers.ControlNetUnionModel
    net = _seeded(
        kind,
        **configured(parts["unet"], kind), conditioning_embedding_out_channels=(8, 8), num_trans_channel=8,
        num_trans_head=2, num_proj_channel=8,
    )  # fmt: skip
    return stirred(net, seed)


def unions(parts: dict[str, Any]) -> Any:
    return [union(parts), union(parts, seed=1)]


def _xl(name: str, **parts: Any) -> Any:
    return assembled(f"StableDiffusionXL{name}Pipeline", tiny_sdxl, **parts)


def _case(
    name: str, parts: dict[str, Any], arguments: dict[str, Any], variants: dict[str, Any], note: str = ""
) -> Case:
    return Case(f"StableDiffusionXL{name}Pipeline", _xl(name, **parts), {**GUIDED, **arguments}, variants, note=note)


_image = {"image": picture(), "strength": 0.8}
_masked = {**SIZE, **MASKED, "strength": 0.9}
_control_image = {"control_image": picture(2)}
_one_mode = {"control_image": [picture(2)], "control_mode": [1]}
_two_modes = {"two modes": {"control_image": [picture(2), picture(3)], "control_mode": [1, 3]}}
_union = {**UNGUIDED, **_two_modes, **PROMPT_EMBEDS}
_nine = {"unet": {"in_channels": 9}}
_refiner = {
    "unet": {"cross_attention_dim": HIDDEN, "projection_class_embeddings_input_dim": 5 * 8 + HIDDEN},
    "text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True,
}  # fmt: skip
_inpaint = {**NEGATIVE, **UNGUIDED, **STRENGTHS, **PROMPT_EMBEDS, **CROP, **ENDS, "tensor image": TENSOR_MASK}

CASES: tuple[Case, ...] = (
    _case(
        "Img2Img", {}, _image,
        {**NEGATIVE, **UNGUIDED, **STRENGTHS, **IMAGE_KINDS, **PROMPT_EMBEDS, **ENDS, **STARTS, **LISTS, **SIZES,
         **TWO_PROMPTS, **RESCALE, **CLIP_SKIP},
    ),
    _case(
        "Img2Img", _refiner, _image,
        {**NEGATIVE, **UNGUIDED, **STARTS, "score": {"aesthetic_score": 2.0, "negative_aesthetic_score": 6.0},
         "denoising_start and end": {**STARTS["denoising_start"], "denoising_end": 0.8, "num_inference_steps": 10}},
        note="refiner",
    ),
    _case(
        "Inpaint", {}, _masked,
        {**_inpaint, **RESCALE, "denoising_start": {"denoising_start": 0.5}, "sigmas": LISTS["sigmas"]},
    ),
    _case("Inpaint", _nine, _masked, {**_inpaint, **MASKED_LATENTS}, note="nine channels"),
    _case(
        "ControlNet", {"controlnet": controlnet}, {"image": picture()},
        {**NEGATIVE, **UNGUIDED, **CONTROL, **IMAGE_KINDS, **PROMPT_EMBEDS, **ENDS, **LISTS, **CLIP_SKIP},
    ),
    _case(
        "ControlNet", {"controlnet": controlnets}, {"image": [picture(), picture(1)]},
        {**UNGUIDED, "control guidance end": TWO}, note="several control nets",
    ),
    _case(
        "ControlNetImg2Img", {"controlnet": controlnet}, {**_image, **_control_image},
        {**NEGATIVE, **UNGUIDED, **CONTROL, **STRENGTHS, **PROMPT_EMBEDS},
    ),
    _case(
        "ControlNetInpaint", {"controlnet": controlnet}, {**MASKED, **_control_image, "strength": 0.9},
        {**NEGATIVE, **UNGUIDED, **CONTROL, **STRENGTHS, **PROMPT_EMBEDS, **CROP, **ENDS},
    ),
    _case("ControlNetUnion", {"controlnet": union}, _one_mode, {**_union, **ENDS}),
    _case(
        "ControlNetUnion", {"controlnet": unions},
        {"control_image": [picture(2), picture(3)], "control_mode": [1, 3],
         "controlnet_conditioning_scale": [0.5, 1.0]},
        {**UNGUIDED}, note="several control nets",
    ),
    _case("ControlNetUnionImg2Img", {"controlnet": union}, {**_image, **_one_mode}, {**_union, **STRENGTHS}),
    _case(
        "ControlNetUnionInpaint", {"controlnet": union}, {**MASKED, **_one_mode, "strength": 0.9},
        {**_union, **STRENGTHS},
    ),
    _case(
        "ControlNetXS", {"unet": {"layers_per_block": 2}, "controlnet": controlnet_xs}, {"image": picture()},
        {**UNGUIDED, "control guidance end": CONTROL["control guidance end"], **PROMPT_EMBEDS},
    ),
    _case(
        "Adapter", {"adapter": lambda parts: adapter("full_adapter_xl", 4)}, {**SIZE, "image": picture()},
        {**NEGATIVE, **UNGUIDED, **ENDS, "first step only": {"adapter_conditioning_factor": 0.2}},
    ),
    _case("PAG", {}, SIZE, {**PAG, **NEGATIVE, **UNGUIDED, **RESCALE, **ENDS, **PROMPT_EMBEDS}),
    _case("PAGImg2Img", {}, _image, {**PAG, **NEGATIVE, **UNGUIDED, **STRENGTHS}),
    _case("PAGInpaint", {}, _masked, {**PAG, **NEGATIVE, **UNGUIDED, **STRENGTHS}),
    _case("PAGInpaint", _nine, _masked, {**PAG, **UNGUIDED}, note="nine channels"),
    _case("ControlNetPAG", {"controlnet": controlnet}, {"image": picture()}, {**PAG, **UNGUIDED, **NEGATIVE}),
    _case(
        "ControlNetPAGImg2Img", {"controlnet": controlnet}, {**_image, **_control_image},
        {**PAG, **UNGUIDED, **STRENGTHS},
    ),
    _case(
        "InstructPix2Pix", {"unet": {"in_channels": 8}},
        {**SIZE, "image": picture(), "image_guidance_scale": 1.5},
        {**NEGATIVE, **UNGUIDED, **PROMPT_EMBEDS, **ENDS, "tensor image": {"image": tensor(picture())}},
    ),
)  # fmt: skip
