"""Cases of the pipelines of SD 1/2 with a model or a loop of their own: upscalers, depth, GLIGEN, unCLIP, edits."""

from typing import Any

import diffusers
import transformers
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from tiny import HIDDEN, _clip_config, _clip_tokenizer, _seeded, _vae, tiny_sd

from zoo.case import Case
from zoo.pictures import assembled, changed, clip_images, mask, picture, rows, stirred, tensor, vision
from zoo.stable_diffusion import ETA, GUIDED, NEGATIVE, PROMPT_EMBEDS, SIZE, STRENGTHS, UNGUIDED

RESCALE = {"guidance_rescale": {"guidance_rescale": 0.7}}


def depth_estimator(parts: dict[str, Any]) -> Any:
    config = transformers.DPTConfig(
        image_size=16, patch_size=4, hidden_size=HIDDEN, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        is_hybrid=False,
    )  # fmt: skip
    return _seeded(transformers.DPTForDepthEstimation, config)


def depth_images(parts: dict[str, Any]) -> Any:
    return transformers.DPTImageProcessorPil(size={"height": 16, "width": 16})


def latent_upscaler(parts: dict[str, Any]) -> Any:
    return _seeded(
        diffusers.UNet2DConditionModel,
        sample_size=16, in_channels=8, out_channels=5, block_out_channels=(32, 32, 64, 64), layers_per_block=1,
        norm_num_groups=None, attention_head_dim=8, act_fn="gelu", time_cond_proj_dim=128 + HIDDEN, conv_in_kernel=1,
        conv_out_kernel=1, cross_attention_dim=HIDDEN, mid_block_type=None, only_cross_attention=False,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3), resnet_time_scale_shift="scale_shift",
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"), time_embedding_type="fourier",
        timestep_post_act="gelu",
    )  # fmt: skip


def prior(parts: dict[str, Any]) -> Any:
    net = _seeded(
        diffusers.PriorTransformer,
        num_attention_heads=2, attention_head_dim=8, embedding_dim=HIDDEN, num_layers=1, num_embeddings=16,
    )  # fmt: skip
    return stirred(net, size=0.3)


def normalizer(parts: dict[str, Any]) -> Any:
    return StableUnCLIPImageNormalizer(embedding_dim=HIDDEN)


def _text(parts: dict[str, Any]) -> Any:
    return _seeded(transformers.CLIPTextModelWithProjection, _clip_config())


_unclip = {
    "unet": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * HIDDEN},
    "image_normalizer": normalizer,
    "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
}  # fmt: skip
_boxes = {"gligen_phrases": ["a cat", "a hat"], "gligen_boxes": [[0.1, 0.2, 0.6, 0.9], [0.5, 0.0, 1.0, 0.5]]}
_edit = {
    "editing_prompt": ["a hat", "a tree"], "reverse_editing_direction": [False, True], "edit_warmup_steps": [1, 2],
    "edit_guidance_scale": [4.0, 5.0], "edit_threshold": [0.7, 0.8], "edit_weights": [1.0, 0.5],
}  # fmt: skip


def _case(name: str, arguments: dict[str, Any], variants: dict[str, Any], **parts: Any) -> Case:
    name = name if "Pipeline" in name else f"StableDiffusion{name}Pipeline"
    return Case(name, assembled(name, tiny_sd, **parts), {**GUIDED, **arguments}, variants)


CASES: tuple[Case, ...] = (
    _case(
        "Depth2Img", {"image": picture(), "strength": 0.8},
        {
            **NEGATIVE, **UNGUIDED, **STRENGTHS, **PROMPT_EMBEDS, **ETA,
            "depth map": {"depth_map": rows(1, 16, 16)}, "tensor image": {"image": tensor(picture())},
        },
        unet={"in_channels": 5}, depth_estimator=depth_estimator, feature_extractor=depth_images,
    ),
    _case(
        "Upscale", {"image": picture(), "noise_level": 20},
        {**NEGATIVE, **UNGUIDED, **PROMPT_EMBEDS, **ETA, "noise level 200": {"noise_level": 200}},
        unet={"in_channels": 7, "num_class_embeds": 1000}, low_res_scheduler=diffusers.DDPMScheduler(),
    ),
    _case(
        "LatentUpscale", {"image": picture()},
        {**NEGATIVE, **UNGUIDED, "latents": {"image": rows(1, 4, 8, 8)}},
        unet=latent_upscaler, scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    ),
    _case("SAG", SIZE, {**NEGATIVE, **UNGUIDED, **PROMPT_EMBEDS, "no self guidance": {"sag_scale": 0.0}}),
    _case(
        "Panorama", {"height": 64, "width": 576},
        {
            **NEGATIVE, **UNGUIDED, "two views at once": {"view_batch_size": 2},
            "circular": {"circular_padding": True, "num_inference_steps": 2},
        },
        vae=lambda parts: _vae(4, blocks=4),
    ),
    _case(
        "GLIGEN", {**SIZE, **_boxes},
        {**NEGATIVE, **UNGUIDED, "all steps": {"gligen_scheduled_sampling_beta": 1.0}},
        unet={"attention_type": "gated"},
    ),
    _case(
        "DiffEdit",
        {"mask_image": tensor(mask(8))[0], "image_latents": rows(1, 4, 4, 8, 8), "inpaint_strength": 0.8, "eta": 1.0},
        {**NEGATIVE, **UNGUIDED, "eta 0, where the seed has no part": {"eta": 0.0}},
        inverse_scheduler=diffusers.DDIMInverseScheduler(),
    ),
    _case(
        "StableUnCLIPPipeline", {**SIZE, "prior_num_inference_steps": 2},
        {**NEGATIVE, **UNGUIDED, "noise level 500": {"noise_level": 500}, "no prior guidance": {
            "prior_guidance_scale": 1.0
        }},
        **_unclip, prior=prior, prior_text_encoder=_text, prior_tokenizer=lambda parts: _clip_tokenizer(),
        prior_scheduler=diffusers.DDPMScheduler(prediction_type="sample", clip_sample_range=5.0),
    ),
    _case(
        "StableUnCLIPImg2ImgPipeline", {**SIZE, "image": picture(size=32)},
        {**NEGATIVE, **UNGUIDED, "noise level 500": {"noise_level": 500}, "image embeds": {
            "image": None, "image_embeds": rows(1, HIDDEN)
        }},
        **_unclip, image_encoder=lambda parts: vision(), feature_extractor=lambda parts: clip_images(),
    ),
    _case(
        "LDM3D", SIZE, {**NEGATIVE, **UNGUIDED, **PROMPT_EMBEDS, **RESCALE},
        vae=lambda parts: changed(_vae(4), in_channels=6, out_channels=6),
    ),
    _case(
        "AttendAndExcite", {**SIZE, "token_indices": [1, 2], "attn_res": (8, 8)},
        {**NEGATIVE, **UNGUIDED, "first step only": {"max_iter_to_alter": 1, "thresholds": {}}},
    ),
    _case(
        "SemanticStableDiffusionPipeline", {**SIZE, **_edit},
        {**NEGATIVE, "no edit": {"editing_prompt": None}, "momentum": {"edit_momentum_scale": 0.5}},
    ),
    _case(
        "StableDiffusionPipelineSafe", SIZE,
        {**NEGATIVE, **UNGUIDED, "strong": {"sld_warmup_steps": 0, "sld_threshold": 1.0, "sld_guidance_scale": 5000}},
    ),
)  # fmt: skip
