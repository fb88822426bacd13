"""Qwen-Image and Z-Image pipelines: pictures, masks, control nets, edits of given pictures, layers.

The edit pipelines scale the given picture to 1024 px whatever is asked for, hence an autoencoder that shrinks by 64.
"""

from typing import Any

import diffusers
import torch
import transformers
from tiny import HIDDEN, _seeded, tiny_qwen_image, tiny_z_image

from zoo.case import Case
from zoo.transformer_parts import as_tensor, embeddings, mask, numbers, picture, seeing, sibling, with_config

_SIZE = {"height": 16, "width": 16, "num_inference_steps": 5}
_IMAGE = {"image": picture()}
_MASKED = {**_IMAGE, "mask_image": mask()}
_CONTROL = {"control_image": picture(1)}
_STRENGTHS = {
    "strength 0.5": {"strength": 0.5, "num_inference_steps": 8},
    "strength 1.0": {"strength": 1.0, "num_inference_steps": 8},
}
_TENSOR_IMAGE = {"tensor image": {"image": as_tensor(picture())}}
_TENSOR_MASKED = {"tensor image": {"image": as_tensor(picture()), "mask_image": as_tensor(mask())}}
_TENSOR_CONTROL = {"tensor image": {"control_image": as_tensor(picture(1))}}
_SIGMAS = {"sigmas": {"sigmas": [1.0, 0.8, 0.55, 0.3, 0.1]}}


def _case(
    name: str, of: Any, arguments: dict[str, Any], *variants: dict[str, Any], scale: float = 2.0, **components: Any
) -> Case:
    build = sibling(name, of, scale, **components)
    return Case(name, build, arguments, {key: call for some in variants for key, call in some.items()})


_QWEN_CALL = {**_SIZE, "true_cfg_scale": 3.0, "negative_prompt": "dog"}
_QWEN_USUAL: dict[str, dict[str, Any]] = {
    "no guidance": {"true_cfg_scale": 1.0, "negative_prompt": None},
    "prompt embeds": {
        **embeddings("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask"),
        "negative_prompt": None,
    },
    **_SIGMAS,
}
_CONTROL_ENDS = {
    "control guidance end": {"control_guidance_start": 0.3, "control_guidance_end": 0.7, "num_inference_steps": 8},
    "weak control": {"controlnet_conditioning_scale": 0.3},
}


def _qwen_control_net(extra: int = 0) -> Any:
    def build(parts: dict[str, Any]) -> diffusers.QwenImageControlNetModel:
        return _seeded(
            diffusers.QwenImageControlNetModel,
            in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=HIDDEN, axes_dims_rope=(4, 2, 2), extra_condition_channels=extra,
        )  # fmt: skip

    return build


def _union_control_net(parts: dict[str, Any]) -> diffusers.QwenImageMultiControlNetModel:
    """One net for several control pictures; the class refuses several nets."""
    return diffusers.QwenImageMultiControlNetModel([_qwen_control_net()(parts)])


_SEVERAL = {"control_image": [picture(1), picture(2)], "controlnet_conditioning_scale": [1.0, 0.5]}


def _qwen(name: str, arguments: dict[str, Any], *variants: dict[str, Any], **components: Any) -> Case:
    # the prompt is a few of many tokens of a template, and is to be seen
    scale = 3.0 if {"controlnet", "processor"} & components.keys() and name != "QwenImageEditPlusPipeline" else 4.0
    return _case(name, tiny_qwen_image, {**_QWEN_CALL, **arguments}, *variants, scale=scale, **components)


_QWEN = (
    _qwen("QwenImageImg2ImgPipeline", _IMAGE, _STRENGTHS, _TENSOR_IMAGE, _QWEN_USUAL),
    _qwen("QwenImageInpaintPipeline", _MASKED, _STRENGTHS, _TENSOR_MASKED, _QWEN_USUAL),
    _qwen(
        "QwenImageControlNetPipeline", _CONTROL,
        _CONTROL_ENDS, _TENSOR_CONTROL, _QWEN_USUAL, controlnet=_qwen_control_net(),
    ),
    _qwen(
        "QwenImageControlNetPipeline", _SEVERAL,
        {"no guidance": _QWEN_USUAL["no guidance"]}, controlnet=_union_control_net,
    ),
    _qwen(
        "QwenImageControlNetInpaintPipeline", {**_CONTROL, "control_mask": mask()},
        _CONTROL_ENDS, _QWEN_USUAL, controlnet=_qwen_control_net(extra=4),
    ),
)  # fmt: skip

_VISION_TOKENS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]


class SmallProcessor:
    """Stands in for Qwen2VLProcessor, which needs torchvision: pictures become a few tokens in the text."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": _VISION_TOKENS})
        self.tokenizer = tokenizer
        self.image_processor = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)

    def __call__(self, text: Any, images: Any = None, padding: bool = True, return_tensors: str = "pt") -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        seen = {} if images is None else self.image_processor(images=images, return_tensors=return_tensors)
        counts = iter([int(grid.prod()) // 4 for grid in seen.get("image_grid_thw", [])])
        pad = _VISION_TOKENS[1]
        for row, words in enumerate(texts):
            first, *rest = words.split(pad)
            texts[row] = first + "".join(pad * next(counts) + part for part in rest)
        words = self.tokenizer(texts, padding=padding, return_tensors=return_tensors)
        return transformers.BatchFeature({**words, **seen})

    def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
        return self.tokenizer.batch_decode(tokens, **options)


def _processor(parts: dict[str, Any]) -> SmallProcessor:
    return SmallProcessor(parts["tokenizer"])


def _with_sight(parts: dict[str, Any]) -> Any:
    config = parts["text_encoder"].config
    first = len(parts["tokenizer"]) - len(_VISION_TOKENS)
    config.vision_start_token_id, config.image_token_id, config.vision_end_token_id = range(first, first + 3)
    return _seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)


def _deep_vae(parts: dict[str, Any]) -> Any:
    """Shrinks by 64."""
    shape = {"dim_mult": [1] * 7, "temperal_downsample": [False] * 6, "num_res_blocks": 0, "base_dim": 2}
    return seeing(with_config(parts["vae"], **shape).eval(), size=256)


def _deep_layered_vae(parts: dict[str, Any]) -> Any:
    """With as many channels of latents as of a picture, which has four here, a picture would be taken for latents."""
    statistics = {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8}
    return _deep_vae({"vae": with_config(parts["vae"], input_channels=4, z_dim=8, **statistics)})


def _layered(parts: dict[str, Any]) -> Any:
    shape = {"in_channels": 32, "out_channels": 8}
    return with_config(parts["transformer"], use_additional_t_cond=True, use_layer3d_rope=True, **shape)


def _edit(name: str, arguments: dict[str, Any], *variants: dict[str, Any], **changes: Any) -> Case:
    parts = {"processor": _processor, "text_encoder": _with_sight, "vae": _deep_vae, **changes}
    return _qwen(name, {**_EDITED, **arguments}, *variants, **parts)


_EDITED = {"height": 256, "width": 256, "image": picture(5, 32)}
_SEVERAL_REFERENCES = {"several references": {"image": [picture(5, 32), picture(6, 32)]}}
_EDIT = (
    _edit("QwenImageEditPipeline", {}, _QWEN_USUAL),
    _edit(  # the slowest: the picture that it paints is of 1024 px too
        "QwenImageEditInpaintPipeline",
        {"mask_image": mask(32)},
        {"strength 0.5": _STRENGTHS["strength 0.5"]},
        {key: _QWEN_USUAL[key] for key in ("no guidance", "prompt embeds")},
    ),
    _edit("QwenImageEditPlusPipeline", {}, _SEVERAL_REFERENCES, _QWEN_USUAL),
    _case(
        "QwenImageLayeredPipeline",
        tiny_qwen_image,
        {
            **{key: value for key, value in _QWEN_CALL.items() if key not in ("height", "width")},
            "image": picture(5, 32, "RGBA"),
            "layers": 2,
        },
        {"normalized guidance": {"cfg_normalize": True}, "no guidance": _QWEN_USUAL["no guidance"]},
        scale=4.0,
        processor=_processor,
        text_encoder=_with_sight,
        vae=_deep_layered_vae,
        transformer=_layered,
    ),
)

_Z_CALL = {**_SIZE, "guidance_scale": 3.0, "max_sequence_length": 32}
_Z_USUAL: dict[str, dict[str, Any]] = {
    "negative prompt": {"negative_prompt": "dog"},
    "no guidance": {"guidance_scale": 0.0},
    "prompt embeds": {
        "prompt": None,
        "prompt_embeds": [numbers(16, HIDDEN)],
        "negative_prompt_embeds": [numbers(12, HIDDEN, seed=1)],
    },
    "guidance that stops": {"cfg_truncation": 0.5, "cfg_normalization": 1.0},
    **_SIGMAS,
}
_WEAK = {"weak control": {"controlnet_conditioning_scale": 0.2}}


def _z_control_net(channels: int) -> Any:
    def build(parts: dict[str, Any]) -> diffusers.ZImageControlNetModel:
        return _seeded(
            diffusers.ZImageControlNetModel,
            control_layers_places=[0, 2], control_in_dim=channels, dim=16, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
            control_refiner_layers_places=[0], add_control_noise_refiner="control_noise_refiner",
        )  # fmt: skip

    return build


def _z_with_sight(parts: dict[str, Any]) -> Any:
    return with_config(parts["transformer"], siglip_feat_dim=HIDDEN)


def _siglip(parts: dict[str, Any]) -> Any:
    config = transformers.Siglip2VisionConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, patch_size=16,
        num_patches=16,
    )  # fmt: skip
    return _seeded(transformers.Siglip2VisionModel, config)


_REFERENCE = {"image": picture(7, 64)}  # the least size that is taken
_Z_IMAGE = (
    _case("ZImageImg2ImgPipeline", tiny_z_image, {**_Z_CALL, **_IMAGE}, _STRENGTHS, _TENSOR_IMAGE, _Z_USUAL),
    _case(
        "ZImageInpaintPipeline", tiny_z_image, {**_Z_CALL, **_MASKED, "strength": 0.8},
        _STRENGTHS, _TENSOR_MASKED, _Z_USUAL,
    ),
    _case(
        "ZImageControlNetPipeline", tiny_z_image, {**_Z_CALL, **_CONTROL},
        _WEAK, _TENSOR_CONTROL, _Z_USUAL, controlnet=_z_control_net(4),
    ),
    _case(
        "ZImageControlNetInpaintPipeline", tiny_z_image, {**_Z_CALL, **_MASKED, **_CONTROL},
        _WEAK, _TENSOR_MASKED, _Z_USUAL, controlnet=_z_control_net(9),
    ),
    _case(
        "ZImageOmniPipeline", tiny_z_image, _Z_CALL,
        {"reference": _REFERENCE, "several references": {"image": [picture(7, 64), picture(8, 64)]}},
        {key: _Z_USUAL[key] for key in ("negative prompt", "no guidance")}, _SIGMAS,
        transformer=_z_with_sight, vae=lambda parts: parts["vae"].to(torch.bfloat16), siglip=_siglip,
        siglip_processor=lambda parts: transformers.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16),
    ),
)  # fmt: skip

CASES: tuple[Case, ...] = (*_QWEN, *_EDIT, *_Z_IMAGE)
