"""PixArt, Sana, HunyuanDiT, CogView4 and Lumina pipelines: control pictures, perturbed attention, few steps."""

from typing import Any

import diffusers
from tiny import (
    _EXACT_SIZE,
    HIDDEN,
    _flow,
    _gemma,
    _ready,
    _seeded,
    _vae,
    tiny_cogview4,
    tiny_hunyuan_dit,
    tiny_pixart,
    tiny_sana,
)

from zoo.case import Case
from zoo.transformer_parts import as_tensor, embeddings, lively, picture, seeing, sibling, with_config

_CALL: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 5, "guidance_scale": 3.0}
_NEGATIVE = {"negative prompt": {"negative_prompt": "dog"}}
_UNGUIDED = {"no guidance": {"guidance_scale": 1.0}}
_WEAK = {"weak control": {"controlnet_conditioning_scale": 0.2}}
_MASKED_EMBEDS = {
    "prompt embeds": embeddings(
        "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
    )
}


def _case(
    name: str, of: Any, arguments: dict[str, Any], *variants: dict[str, Any], scale: float = 2.0, **components: Any
) -> Case:
    build = sibling(name, of, scale, **components)
    return Case(name, build, arguments, {key: call for some in variants for key, call in some.items()})


_PIXART_CALL = {**_CALL, **_EXACT_SIZE, "clean_caption": False}
_PIXART_EMBEDS = {"prompt embeds": {**_MASKED_EMBEDS["prompt embeds"], "negative_prompt": None}}
_PIXART = (
    _case(
        "PixArtAlphaPipeline", tiny_pixart, {**_PIXART_CALL, "max_sequence_length": 16},
        _NEGATIVE, _UNGUIDED, _PIXART_EMBEDS,
    ),
    _case(
        "PixArtSigmaPAGPipeline", tiny_pixart, {**_PIXART_CALL, "max_sequence_length": 16},
        _NEGATIVE, _UNGUIDED, {"no perturbation": {"pag_scale": 0.0}},
    ),
)  # fmt: skip

_SANA_SIZE = {"height": 32, "width": 32}
_SANA_CALL = {**_CALL, **_EXACT_SIZE, **_SANA_SIZE, "complex_human_instruction": None, "max_sequence_length": 32}
_SPRINT_CALL = {**_SANA_CALL, "num_inference_steps": 2}


def _sana_control_net(parts: dict[str, Any]) -> diffusers.SanaControlNetModel:
    return _seeded(
        diffusers.SanaControlNetModel,
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=HIDDEN,
        sample_size=8,
    )  # fmt: skip


def _sprint(parts: dict[str, Any]) -> Any:
    return with_config(parts["transformer"], guidance_embeds=True, qk_norm="rms_norm_across_heads")


_SPRINT = {"transformer": _sprint, "scheduler": lambda parts: diffusers.SCMScheduler()}
_MORE_STEPS = {"more steps": {"num_inference_steps": 4, "intermediate_timesteps": None}}
_SPRINT_EMBEDS = {"prompt embeds": embeddings("prompt_embeds", "prompt_attention_mask")}
_SANA_EMBEDS = {"prompt embeds": {**_MASKED_EMBEDS["prompt embeds"], "negative_prompt": None}}
_SANA = (
    _case(
        "SanaControlNetPipeline", tiny_sana, {**_SANA_CALL, "control_image": picture(1, 32)},
        _NEGATIVE, _UNGUIDED, _WEAK, _SANA_EMBEDS, controlnet=_sana_control_net,
    ),
    _case("SanaPAGPipeline", tiny_sana, _SANA_CALL, _NEGATIVE, _UNGUIDED, {"no perturbation": {"pag_scale": 0.0}}),
    _case("SanaSprintPipeline", tiny_sana, _SPRINT_CALL, _MORE_STEPS, _SPRINT_EMBEDS, **_SPRINT),
    _case(
        "SanaSprintImg2ImgPipeline", tiny_sana, {**_SPRINT_CALL, **_MORE_STEPS["more steps"], "image": picture(0, 32)},
        {"strength 0.5": {"strength": 0.5}, "strength 1.0": {"strength": 1.0}},
        {"tensor image": {"image": as_tensor(picture(0, 32))}}, _SPRINT_EMBEDS,
        **_SPRINT,
    ),
)  # fmt: skip

_HUNYUAN_CALL = {**_CALL, **_EXACT_SIZE, "height": 64, "width": 64}


def _hunyuan_control_net(parts: dict[str, Any]) -> diffusers.HunyuanDiT2DControlNetModel:
    return _seeded(
        diffusers.HunyuanDiT2DControlNetModel,
        sample_size=8, in_channels=4, patch_size=2, transformer_num_layers=4, attention_head_dim=8,
        num_attention_heads=2, hidden_size=16, cross_attention_dim=HIDDEN, cross_attention_dim_t5=HIDDEN,
        pooled_projection_dim=8, mlp_ratio=2.0, use_style_cond_and_image_meta_size=False,
    )  # fmt: skip


def _two_hunyuan_control_nets(parts: dict[str, Any]) -> diffusers.HunyuanDiT2DMultiControlNetModel:
    second = _hunyuan_control_net(parts)
    return diffusers.HunyuanDiT2DMultiControlNetModel([_hunyuan_control_net(parts), lively(second, 1.5)])


_NO_CHECKER = {"safety_checker": None, "feature_extractor": None}
_HUNYUAN = (
    _case(
        "HunyuanDiTControlNetPipeline", tiny_hunyuan_dit, {**_HUNYUAN_CALL, "control_image": picture(1, 64)},
        _NEGATIVE, _UNGUIDED, _WEAK, controlnet=_hunyuan_control_net, **_NO_CHECKER,
    ),
    _case(
        "HunyuanDiTControlNetPipeline", tiny_hunyuan_dit,
        {
            **_HUNYUAN_CALL, "control_image": [picture(1, 64), picture(2, 64)],
            "controlnet_conditioning_scale": [1.0, 0.5],
        },
        _NEGATIVE, controlnet=_two_hunyuan_control_nets, **_NO_CHECKER,
    ),
    _case(
        "HunyuanDiTPAGPipeline", tiny_hunyuan_dit, _HUNYUAN_CALL,
        _NEGATIVE, _UNGUIDED, {"no perturbation": {"pag_scale": 0.0}}, **_NO_CHECKER,
    ),
)  # fmt: skip

_COGVIEW = (
    _case(
        "CogView4ControlPipeline", tiny_cogview4, {**_CALL, "control_image": picture(1)},
        _NEGATIVE, _UNGUIDED,
        {"prompt embeds": embeddings("prompt_embeds", "negative_prompt_embeds")},
        transformer=lambda parts: with_config(parts["transformer"], in_channels=8, out_channels=4),
    ),
)  # fmt: skip


def _lumina() -> diffusers.LuminaPipeline:
    transformer = _seeded(
        diffusers.LuminaNextDiT2DModel,
        sample_size=8, in_channels=4, hidden_size=16, num_layers=2, num_attention_heads=2, num_kv_heads=1,
        multiple_of=8, cross_attention_dim=HIDDEN,
    )  # fmt: skip
    return _ready(
        diffusers.LuminaPipeline(transformer=lively(transformer), scheduler=_flow(), vae=seeing(_vae(4)), **_gemma())
    )


_LUMINA = (
    Case(
        "LuminaPipeline",
        _lumina,
        # of an empty negative prompt this tokenizer makes no token at all, which ends in NaN
        {**_CALL, "height": 64, "width": 64, "clean_caption": False, "max_sequence_length": 32, "negative_prompt": "x"},
        {
            **_NEGATIVE,
            **_UNGUIDED,
            "prompt embeds": {**_MASKED_EMBEDS["prompt embeds"], "negative_prompt": None},
            "sigmas": {"sigmas": [1.0, 0.8, 0.55, 0.3, 0.1]},
        },
    ),
)

CASES: tuple[Case, ...] = (*_PIXART, *_SANA, *_HUNYUAN, *_COGVIEW, *_LUMINA)
