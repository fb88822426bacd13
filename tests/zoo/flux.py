"""FLUX.1, FLUX.2 and Chroma pipelines of 16 px: pictures, masks, control pictures, control nets, references."""

from typing import Any

import diffusers
import torch
import transformers
from tiny import _LLM, HIDDEN, _seeded, tiny_chroma, tiny_flux, tiny_flux2

from zoo.case import Case
from zoo.transformer_parts import as_tensor, embeddings, mask, picture, sibling, with_config

_SIZE = {"height": 16, "width": 16}
_CALL: dict[str, Any] = {**_SIZE, "num_inference_steps": 5, "guidance_scale": 4.0, "max_sequence_length": 16}
_IMAGE = {"image": picture()}
_MASKED = {**_IMAGE, "mask_image": mask()}
_CONTROL = {"control_image": picture(1)}
_NEGATIVE = {"negative prompt": {"negative_prompt": "dog", "true_cfg_scale": 3.0}}
_EMBEDS = {"prompt embeds": embeddings("prompt_embeds", "pooled_prompt_embeds")}
_NEGATIVE_EMBEDS = {
    "negative prompt embeds": {
        **embeddings(
            "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds"
        ),
        "true_cfg_scale": 3.0,
    }
}
_SIGMAS = {"sigmas": {"sigmas": [1.0, 0.8, 0.55, 0.3, 0.1]}}
_STRENGTHS = {
    "strength 0.5": {"strength": 0.5, "num_inference_steps": 8},
    "strength 1.0": {"strength": 1.0, "num_inference_steps": 8},
}
_TENSOR_IMAGE = {"tensor image": {"image": as_tensor(picture())}}
_TENSOR_MASKED = {"tensor image": {"image": as_tensor(picture()), "mask_image": as_tensor(mask())}}
_BARE_MASK = {"mask of the size of latents": {"mask_image": torch.eye(8)[None, None]}}
_CONTROL_ENDS = {
    "control guidance end": {"control_guidance_start": 0.3, "control_guidance_end": 0.7, "num_inference_steps": 8},
    "weak control": {"controlnet_conditioning_scale": 0.3},
}
_TENSOR_CONTROL = {"tensor image": {"control_image": as_tensor(picture(1))}}
_SEVERAL = {
    "control_image": [picture(1), picture(2)], "control_mode": [0, 1], "controlnet_conditioning_scale": [1.0, 0.5]
}  # fmt: skip
_SEVERAL_WEIGHTS = {
    "weights and ends": {
        "controlnet_conditioning_scale": [0.3, 1.0],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.7, 1.0],
    }
}
_KONTEXT = {"max_area": 16 * 16, "_auto_resize": False}


def _wider(channels: int) -> Any:
    """The transformer of a pipeline that is also given a picture with its latents."""
    return lambda parts: with_config(parts["transformer"], in_channels=channels, out_channels=16)


def _control_net(seed: int = 0, modes: int | None = None) -> Any:
    def build(parts: dict[str, Any]) -> diffusers.FluxControlNetModel:
        torch.manual_seed(seed)
        return diffusers.FluxControlNetModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=HIDDEN, pooled_projection_dim=HIDDEN, axes_dims_rope=[4, 2, 2], guidance_embeds=True,
            num_mode=modes,
        )  # fmt: skip

    return build


def _control_nets(parts: dict[str, Any]) -> diffusers.FluxMultiControlNetModel:
    return diffusers.FluxMultiControlNetModel([_control_net(seed, modes=2)(parts) for seed in (0, 1)])


def _case(
    name: str, of: Any, arguments: dict[str, Any], *variants: dict[str, Any], scale: float = 2.0, **components: Any
) -> Case:
    build = sibling(name, of, scale, **components)
    return Case(name, build, arguments, {key: call for some in variants for key, call in some.items()})


def _flux(name: str, arguments: dict[str, Any], *variants: dict[str, Any], **options: Any) -> Case:
    return _case(name, tiny_flux, {**_CALL, **arguments}, *variants, **options)


_FLUX_1 = (
    _flux(
        "FluxImg2ImgPipeline", _IMAGE,
        _STRENGTHS, _TENSOR_IMAGE, _NEGATIVE, _EMBEDS, _NEGATIVE_EMBEDS, _SIGMAS,
    ),
    _flux("FluxInpaintPipeline", _MASKED, _STRENGTHS, _TENSOR_MASKED, _NEGATIVE, _EMBEDS, _SIGMAS, _BARE_MASK),
    _flux("FluxFillPipeline", _MASKED, _STRENGTHS, _TENSOR_MASKED, _EMBEDS, _SIGMAS, transformer=_wider(48)),
    _flux("FluxControlPipeline", _CONTROL, _TENSOR_CONTROL, _EMBEDS, _SIGMAS, transformer=_wider(32)),
    _flux(
        "FluxControlImg2ImgPipeline", {**_IMAGE, **_CONTROL},
        _STRENGTHS, _TENSOR_IMAGE, _EMBEDS, _SIGMAS, transformer=_wider(32),
    ),
    _flux(
        "FluxControlInpaintPipeline", {**_MASKED, **_CONTROL},
        _STRENGTHS, _TENSOR_MASKED, _EMBEDS, _SIGMAS, transformer=_wider(32),
    ),
    _flux(
        "FluxControlNetPipeline", _CONTROL,
        _CONTROL_ENDS, _TENSOR_CONTROL, _NEGATIVE, _EMBEDS, _NEGATIVE_EMBEDS, _SIGMAS, controlnet=_control_net(),
    ),
    _flux("FluxControlNetPipeline", _SEVERAL, _SEVERAL_WEIGHTS, _NEGATIVE, _EMBEDS, controlnet=_control_nets),
    _flux(
        "FluxControlNetImg2ImgPipeline", {**_IMAGE, **_CONTROL},
        _STRENGTHS, _CONTROL_ENDS, _TENSOR_IMAGE, _EMBEDS, _SIGMAS, controlnet=_control_net(),
    ),
    _flux("FluxControlNetImg2ImgPipeline", {**_IMAGE, **_SEVERAL}, _SEVERAL_WEIGHTS, controlnet=_control_nets),
    _flux(
        "FluxControlNetInpaintPipeline", {**_MASKED, **_CONTROL},
        _STRENGTHS, _CONTROL_ENDS, _TENSOR_MASKED, _EMBEDS, _SIGMAS, controlnet=_control_net(),
    ),
    _flux("FluxControlNetInpaintPipeline", {**_MASKED, **_SEVERAL}, _SEVERAL_WEIGHTS, controlnet=_control_nets),
    _flux(
        "FluxKontextPipeline", {**_IMAGE, **_KONTEXT},
        {"no image": {"image": None}}, _TENSOR_IMAGE, _NEGATIVE, _EMBEDS, _SIGMAS, scale=3.0,
    ),
    _flux(
        "FluxKontextInpaintPipeline", {**_MASKED, **_KONTEXT, "strength": 0.8},
        _STRENGTHS, {"reference": {"image_reference": picture(2)}}, _NEGATIVE, _EMBEDS, _SIGMAS, scale=3.0,
    ),
)  # fmt: skip

_KLEIN_CALL = {**_CALL, "max_sequence_length": 20, "text_encoder_out_layers": (0, 1, 2)}
_REFERENCE = {"image": picture(3, 64)}  # the least size that is taken
_KLEIN_EMBEDS = {"prompt embeds": embeddings("prompt_embeds", "negative_prompt_embeds", width=3 * HIDDEN)}
_REFERENCES = {
    "reference": _REFERENCE,
    "several references": {"image": [picture(3, 64), picture(4, 64)]},
}


def _mistral(parts: dict[str, Any]) -> Any:
    text = {**_LLM, "head_dim": 8}
    vision = {
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
        "head_dim": 8, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    return _seeded(transformers.Mistral3ForConditionalGeneration, config)


def _mistral_tokenizer(parts: dict[str, Any]) -> Any:
    """A tokenizer instead of the processor, which needs torchvision.

    It reads what the user says, not the long message of the system before it.
    """
    tokenizer = parts["tokenizer"]
    tokenizer.chat_template = "{% for part in messages[-1]['content'] %}{{ part['text'] }}{% endfor %}"
    tokenizer.tokenizer = tokenizer
    return tokenizer


def _guided_flux2(parts: dict[str, Any]) -> Any:
    return with_config(parts["transformer"], guidance_embeds=True)


_FLUX_2 = (
    _case(
        "Flux2Pipeline", tiny_flux2, _KLEIN_CALL,
        _REFERENCES, {"prompt embeds": embeddings("prompt_embeds", width=3 * HIDDEN)}, _SIGMAS,
        {"written out prompt": {"caption_upsample_temperature": 0.5}},
        text_encoder=_mistral, tokenizer=_mistral_tokenizer, transformer=_guided_flux2,
    ),
    _case(
        "Flux2KleinPipeline", tiny_flux2, _KLEIN_CALL,
        _REFERENCES, {"no guidance": {"guidance_scale": 1.0}}, _KLEIN_EMBEDS, _SIGMAS, scale=3.0,
    ),
    _case(
        "Flux2KleinInpaintPipeline", tiny_flux2, {**_KLEIN_CALL, **_MASKED},
        _STRENGTHS, _TENSOR_MASKED, {"reference": {"image_reference": picture(3, 64)}},
        {"no guidance": {"guidance_scale": 1.0}}, _KLEIN_EMBEDS, _SIGMAS,
    ),
    _case(
        "Flux2KleinKVPipeline", tiny_flux2,
        {key: value for key, value in _KLEIN_CALL.items() if key != "guidance_scale"} | _REFERENCE,
        {"no image": {"image": None}, "several references": _REFERENCES["several references"]},
        {"prompt embeds": embeddings("prompt_embeds", width=3 * HIDDEN)}, _SIGMAS, scale=3.0,
    ),
)  # fmt: skip

_CHROMA_CALL = {**_CALL, "max_sequence_length": 20}
_CHROMA = tuple(
    _case(
        name, tiny_chroma, {**_CHROMA_CALL, **arguments},
        _STRENGTHS, _SIGMAS, tensor, {"negative prompt": {"negative_prompt": "dog"}},
        {"no guidance": {"guidance_scale": 1.0}},
        {"prompt embeds": embeddings(
            "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
        )},
        # the inpainting pipeline reads an entry of the config that the transformer's class does not have
        transformer=lambda parts: with_config(parts["transformer"], guidance_embeds=False),
    )
    for name, arguments, tensor in (
        ("ChromaImg2ImgPipeline", {**_IMAGE, "strength": 0.6}, _TENSOR_IMAGE),
        ("ChromaInpaintPipeline", _MASKED, _TENSOR_MASKED),
    )
)  # fmt: skip

CASES: tuple[Case, ...] = (*_FLUX_1, *_FLUX_2, *_CHROMA)
