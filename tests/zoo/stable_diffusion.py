"""Cases of the pipelines of SD 1/2 that take pictures: image to image, inpainting, control nets, PAG, adapters."""

from typing import Any

import diffusers
from tiny import HIDDEN, _seeded, tiny_lcm, tiny_sd

from zoo.case import Case
from zoo.pictures import assembled, awake, changed, clip_images, mask, numbers, picture, rows, stirred, tensor, vision

SIZE = {"height": 16, "width": 16}
STEPS = {"num_inference_steps": 5}
GUIDED = {**STEPS, "guidance_scale": 4.0}

NEGATIVE = {"negative prompt": {"negative_prompt": "a dog"}}
UNGUIDED = {"no guidance": {"guidance_scale": 1.0}}
ETA = {"eta 1": {"eta": 1.0}}
PROMPT_EMBEDS = {
    "prompt embeds": {
        "prompt": None, "prompt_embeds": rows(1, 16, HIDDEN), "negative_prompt_embeds": rows(1, 16, HIDDEN, seed=1),
    }
}  # fmt: skip
STRENGTHS = {
    "strength 0.5": {"strength": 0.5, "num_inference_steps": 8},
    "strength 1.0": {"strength": 1.0, "num_inference_steps": 8},
}
IMAGE_KINDS = {"tensor image": {"image": tensor(picture())}, "numpy image": {"image": numbers(picture())}}
MASKED = {"image": picture(), "mask_image": mask()}
TENSOR_MASK = {"image": tensor(picture()), "mask_image": tensor(mask())}
CROP = {"padding_mask_crop": {"padding_mask_crop": 2, "output_type": "pil"}}  # the classes allow no other type
CONTROL = {
    "guess mode": {"guess_mode": True},
    "control guidance end": {"control_guidance_end": 0.5, "control_guidance_start": 0.1},
    "conditioning scale": {"controlnet_conditioning_scale": 0.3},
}


def controlnet(parts: dict[str, Any], seed: int = 0) -> Any:
    """A control net of the unet's shape, with four channels in; its pictures are twice as wide as the latents."""
    plain = changed(parts["unet"], in_channels=4)
    net = _seeded(
        diffusers.ControlNetModel.from_unet,
        plain, conditioning_embedding_out_channels=(8, 8), load_weights_from_unet=False,
    )  # fmt: skip
    return stirred(net, seed)


def controlnets(parts: dict[str, Any]) -> Any:
    return [controlnet(parts), controlnet(parts, seed=1)]


def controlnet_xs(parts: dict[str, Any]) -> Any:
    return awake(
        _seeded(
            diffusers.ControlNetXSAdapter.from_unet,
            parts["unet"], size_ratio=0.5, conditioning_embedding_out_channels=(8, 8), num_attention_heads=2,
        )
    )  # fmt: skip


def adapter(adapter_type: str = "full_adapter", downscale_factor: int = 2) -> Any:
    return _seeded(
        diffusers.T2IAdapter,
        channels=[8, 8, 16], num_res_blocks=1, downscale_factor=downscale_factor, adapter_type=adapter_type,
    )  # fmt: skip


def _img2img(name: str, build: Any, **arguments: Any) -> Case:
    return Case(
        name, build, {**GUIDED, "image": picture(), "strength": 0.8, **arguments},
        {**NEGATIVE, **UNGUIDED, **STRENGTHS, **IMAGE_KINDS, **PROMPT_EMBEDS, **ETA},
    )  # fmt: skip


def _inpaint(name: str, build: Any, note: str = "", **variants: Any) -> Case:
    return Case(
        name, build, {**GUIDED, **SIZE, **MASKED, "strength": 1.0},
        {
            **NEGATIVE, **UNGUIDED, **STRENGTHS, **PROMPT_EMBEDS, **CROP, **ETA,
            "masked image given as tensors": TENSOR_MASK, **variants,
        },
        note=note,
    )  # fmt: skip


_control_text = {**NEGATIVE, **UNGUIDED, **CONTROL, **PROMPT_EMBEDS, **ETA, **IMAGE_KINDS}
TWO = {
    "controlnet_conditioning_scale": [0.5, 0.8], "control_guidance_end": [0.6, 1.0],
    "control_guidance_start": [0.0, 0.3],
}  # fmt: skip
_control_image = {"control_image": picture(2)}
PAG = {"no pag": {"pag_scale": 0.0}, "adaptive pag": {"pag_adaptive_scale": 1.0}}
_more_pag = {**PAG, **UNGUIDED, **NEGATIVE}
MASKED_LATENTS = {"masked image given as latents": {**TENSOR_MASK, "masked_image_latents": rows(1, 4, 8, 8)}}

CASES: tuple[Case, ...] = (
    _img2img("StableDiffusionImg2ImgPipeline", assembled("StableDiffusionImg2ImgPipeline", tiny_sd)),
    _inpaint("StableDiffusionInpaintPipeline", assembled("StableDiffusionInpaintPipeline", tiny_sd)),
    _inpaint(
        "StableDiffusionInpaintPipeline",
        assembled("StableDiffusionInpaintPipeline", tiny_sd, unet={"in_channels": 9}),
        note="nine channels", **MASKED_LATENTS,
    ),
    Case(
        "StableDiffusionControlNetPipeline",
        assembled("StableDiffusionControlNetPipeline", tiny_sd, controlnet=controlnet),
        {**GUIDED, "image": picture()}, _control_text,
    ),
    Case(
        "StableDiffusionControlNetPipeline",
        assembled("StableDiffusionControlNetPipeline", tiny_sd, controlnet=controlnets),
        {**GUIDED, "image": [picture(), picture(1)], "controlnet_conditioning_scale": [0.5, 1.0]},
        {**UNGUIDED, "guess mode": {"guess_mode": True}, "control guidance end": TWO},
        note="several control nets",
    ),
    Case(
        "StableDiffusionControlNetImg2ImgPipeline",
        assembled("StableDiffusionControlNetImg2ImgPipeline", tiny_sd, controlnet=controlnet),
        {**GUIDED, "image": picture(), **_control_image, "strength": 0.8},
        {**NEGATIVE, **UNGUIDED, **CONTROL, **STRENGTHS, **PROMPT_EMBEDS, "tensor image": IMAGE_KINDS["tensor image"]},
    ),
    Case(
        "StableDiffusionControlNetInpaintPipeline",
        assembled("StableDiffusionControlNetInpaintPipeline", tiny_sd, controlnet=controlnet),
        {**GUIDED, **MASKED, **_control_image},
        {**NEGATIVE, **UNGUIDED, **CONTROL, **STRENGTHS, **PROMPT_EMBEDS, **CROP, "tensor image": TENSOR_MASK},
    ),
    Case(
        "StableDiffusionControlNetInpaintPipeline",
        assembled(
            "StableDiffusionControlNetInpaintPipeline", tiny_sd, unet={"in_channels": 9}, controlnet=controlnets
        ),
        {**GUIDED, **MASKED, "control_image": [picture(2), picture(1)]},
        {**UNGUIDED, "control guidance end": TWO},
        note="nine channels, several control nets",
    ),
    Case(
        "StableDiffusionControlNetXSPipeline",
        assembled(
            "StableDiffusionControlNetXSPipeline", tiny_sd, unet={"layers_per_block": 2}, controlnet=controlnet_xs
        ),
        {**GUIDED, "image": picture()}, {**UNGUIDED, "control guidance end": CONTROL["control guidance end"]},
    ),
    Case(
        "StableDiffusionAdapterPipeline",
        assembled("StableDiffusionAdapterPipeline", tiny_sd, adapter=lambda parts: adapter()),
        {**GUIDED, **SIZE, "image": picture()},
        {**NEGATIVE, **UNGUIDED, "weak adapter": {"adapter_conditioning_scale": 0.3}},
    ),
    Case(
        "StableDiffusionPAGPipeline", assembled("StableDiffusionPAGPipeline", tiny_sd), {**GUIDED, **SIZE},
        {**_more_pag, **PROMPT_EMBEDS, "guidance_rescale": {"guidance_rescale": 0.7}},
    ),
    Case(
        "StableDiffusionPAGImg2ImgPipeline", assembled("StableDiffusionPAGImg2ImgPipeline", tiny_sd),
        {**GUIDED, "image": picture()}, {**_more_pag, **STRENGTHS},
    ),
    Case(
        "StableDiffusionPAGInpaintPipeline", assembled("StableDiffusionPAGInpaintPipeline", tiny_sd),
        {**GUIDED, **SIZE, **MASKED}, {**_more_pag, **STRENGTHS},
    ),
    Case(
        "StableDiffusionPAGInpaintPipeline",
        assembled("StableDiffusionPAGInpaintPipeline", tiny_sd, unet={"in_channels": 9}),
        {**GUIDED, **SIZE, **MASKED}, {**_more_pag, **STRENGTHS},
        note="nine channels",
    ),
    Case(
        "StableDiffusionControlNetPAGPipeline",
        assembled("StableDiffusionControlNetPAGPipeline", tiny_sd, controlnet=controlnet),
        {**GUIDED, "image": picture()}, {**_more_pag, "conditioning scale": CONTROL["conditioning scale"]},
    ),
    Case(
        "StableDiffusionControlNetPAGInpaintPipeline",
        assembled("StableDiffusionControlNetPAGInpaintPipeline", tiny_sd, controlnet=controlnet),
        {**GUIDED, **MASKED, **_control_image}, {**_more_pag, **STRENGTHS},
    ),
    Case(
        "StableDiffusionImageVariationPipeline",
        assembled(
            "StableDiffusionImageVariationPipeline", tiny_sd,
            image_encoder=lambda parts: vision(), feature_extractor=lambda parts: clip_images(),
        ),
        {**GUIDED, **SIZE, "image": picture(size=32)},
        {**UNGUIDED, **ETA, "tensor image": {"image": rows(1, 3, 32, 32)}},
        takes_prompt=False,
    ),
    Case(
        "StableDiffusionInstructPix2PixPipeline",
        assembled("StableDiffusionInstructPix2PixPipeline", tiny_sd, unet={"in_channels": 8}),
        {**GUIDED, "image": picture(), "image_guidance_scale": 1.5},
        {**NEGATIVE, **UNGUIDED, **IMAGE_KINDS, **PROMPT_EMBEDS, "image guidance 3": {"image_guidance_scale": 3.0}},
    ),
    Case(
        "LatentConsistencyModelImg2ImgPipeline", assembled("LatentConsistencyModelImg2ImgPipeline", tiny_lcm),
        {**GUIDED, "image": picture(), "strength": 0.8},
        {
            "strength 0.5": {"strength": 0.5}, "strength 1.0": {"strength": 1.0}, **IMAGE_KINDS,
            "original steps": {"original_inference_steps": 20}, **UNGUIDED,
        },
    ),
)  # fmt: skip
