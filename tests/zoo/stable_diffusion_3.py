"""Cases of the SD3 pipelines that take pictures: image to image, inpainting, control nets, PAG."""

from typing import Any

import diffusers
from tiny import HIDDEN, _seeded, tiny_sd3

from zoo.case import Case
from zoo.pictures import assembled, configured, mask, numbers, picture, rows, stirred, tensor

GUIDED = {"num_inference_steps": 5, "guidance_scale": 4.0, "max_sequence_length": 16}
SIZE = {"height": 16, "width": 16}
COMMON = {
    "negative prompt": {"negative_prompt": "a dog"},
    "no guidance": {"guidance_scale": 1.0},
    "prompt embeds": {
        "prompt": None,
        "prompt_embeds": rows(1, 32, 2 * HIDDEN), "negative_prompt_embeds": rows(1, 32, 2 * HIDDEN, seed=1),
        "pooled_prompt_embeds": rows(1, 2 * HIDDEN), "negative_pooled_prompt_embeds": rows(1, 2 * HIDDEN, seed=1),
    },
}  # fmt: skip
SIGMAS = {"sigmas": {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2], "num_inference_steps": 5}}
STRENGTHS = {
    "strength 0.5": {"strength": 0.5, "num_inference_steps": 8},
    "strength 1.0": {"strength": 1.0, "num_inference_steps": 8},
}
CLIP_SKIP = {"clip_skip": {"clip_skip": 1}}
PROMPTS = {"three prompts": {"prompt_2": "a house", "prompt_3": "a tree", "negative_prompt": "a dog"}}
IMAGE_KINDS = {"tensor image": {"image": tensor(picture())}, "numpy image": {"image": numbers(picture())}}
TENSOR_MASK = {"tensor image": {"image": tensor(picture()), "mask_image": tensor(mask())}}
CONTROL = {
    "control guidance end": {"control_guidance_end": 0.5, "control_guidance_start": 0.1},
    "conditioning scale": {"controlnet_conditioning_scale": 0.3},
}
GLOBAL = "encodes the control picture with noise of torch's global generator: not reproducible by seed alone"
PAG = {"no pag": {"pag_scale": 0.0}, "adaptive pag": {"pag_adaptive_scale": 1.0}}


def controlnet(parts: dict[str, Any], extra: int = 0, seed: int = 0) -> Any:
    """A control net of two blocks, of the transformer's shape, for control pictures with `extra` more channels."""
    kind = diffusers.SD3ControlNetModel
    config = {**configured(parts["transformer"], kind), "num_layers": 2, "extra_conditioning_channels": extra}
    return stirred(_seeded(kind, **config), seed, size=0.1)


def _case(name: str, arguments: dict[str, Any], variants: dict[str, Any], note: str = "", **parts: Any) -> Case:
    name = f"StableDiffusion3{name}Pipeline"
    return Case(name, assembled(name, tiny_sd3, **parts), {**GUIDED, **SIZE, **arguments}, variants, note=note)


_image = {"image": picture(), "strength": 0.8}
_masked = {"image": picture(), "mask_image": mask(), "strength": 0.8}

CASES: tuple[Case, ...] = (
    _case("Img2Img", _image, {**COMMON, **STRENGTHS, **IMAGE_KINDS, **PROMPTS, **SIGMAS, **CLIP_SKIP}),
    _case(
        "Inpaint", _masked,
        {
            **COMMON, **STRENGTHS, **TENSOR_MASK, **PROMPTS,
            "padding_mask_crop": {"padding_mask_crop": 2, "output_type": "pil"},  # no other type is allowed
        },
        transformer={"in_channels": 16, "out_channels": 16}, vae={"latent_channels": 16},
    ),
    _case(
        "Inpaint", _masked,
        {
            "strength 1.0": STRENGTHS["strength 1.0"], "no guidance": COMMON["no guidance"],
            "masked image given as latents": {"masked_image_latents": rows(1, 16, 8, 8)},
        },
        note="33 channels", transformer={"in_channels": 33, "out_channels": 16}, vae={"latent_channels": 16},
    ),
    _case(
        "ControlNet", {"control_image": picture()}, {**COMMON, **CONTROL, **SIGMAS, **PROMPTS, **CLIP_SKIP},
        note=GLOBAL, controlnet=controlnet,
    ),
    _case(
        "ControlNet",
        {"control_image": [picture(), picture(1)], "controlnet_conditioning_scale": [0.5, 1.0]},
        {
            "no guidance": COMMON["no guidance"],
            "control guidance end": {"control_guidance_end": [0.5, 1.0], "control_guidance_start": [0.0, 0.3]},
        },
        note=f"several control nets; {GLOBAL}",
        controlnet=lambda parts: diffusers.SD3MultiControlNetModel([controlnet(parts), controlnet(parts, seed=1)]),
    ),
    _case(
        "ControlNetInpainting", {"control_image": picture(), "control_mask": mask()}, {**COMMON, **CONTROL},
        note=GLOBAL, controlnet=lambda parts: controlnet(parts, extra=1),
    ),
    _case("PAG", {}, {**COMMON, **PAG, **SIGMAS}),
    _case("PAGImg2Img", _image, {**COMMON, **PAG, **STRENGTHS}),
)  # fmt: skip
