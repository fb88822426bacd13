"""Video pipelines: CogVideoX, Mochi, and the U-Nets (AnimateDiff, Stable Video Diffusion and older ones)."""

from collections.abc import Callable
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from tiny import (
    HIDDEN,
    _clip_config,
    _clip_tokenizer,
    _ready,
    _seeded,
    _vae,
    tiny_sd,
)

from zoo.case import Case
from zoo.transformer_parts import lively, picture
from zoo.video import (
    BY_VIDEO,
    GUIDED,
    MASKED,
    NEGATIVE,
    PLAIN,
    STEPS,
    UNGUIDED,
    frames,
    sighted,
    texts,
)

VISION = {"hidden_size": HIDDEN, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def unet_schedule(**config: Any) -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, **config
    )


def _clip_text() -> dict[str, Any]:
    return {"text_encoder": _seeded(transformers.CLIPTextModel, _clip_config()), "tokenizer": _clip_tokenizer()}


def _eyes(size: int) -> dict[str, Any]:
    config = transformers.CLIPVisionConfig(**VISION, image_size=size, patch_size=size // 2, projection_dim=HIDDEN)
    return {
        "image_encoder": _seeded(transformers.CLIPVisionModelWithProjection, config),
        "feature_extractor": transformers.CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
    }


def _animatediff() -> DiffusionPipeline:
    parts = {name: tiny_sd().components[name] for name in ("vae", "text_encoder", "tokenizer")}
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=HIDDEN,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    adapter = _seeded(
        diffusers.MotionAdapter,
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2,
    )  # fmt: skip
    pipe = diffusers.AnimateDiffPipeline(
        **parts, unet=lively(unet), motion_adapter=lively(adapter), scheduler=unet_schedule()
    )
    return _ready(pipe)


def _text_to_video_sd() -> DiffusionPipeline:
    unet = _seeded(
        diffusers.UNet3DConditionModel,
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=HIDDEN,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        attention_head_dim=4,
    )  # fmt: skip
    pipe = diffusers.TextToVideoSDPipeline(vae=_vae(4), unet=lively(unet), scheduler=unet_schedule(), **_clip_text())
    return _ready(pipe)


def _svd() -> DiffusionPipeline:
    unet = _seeded(
        diffusers.UNetSpatioTemporalConditionModel,
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=HIDDEN,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), num_attention_heads=2,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLTemporalDecoder,
        block_out_channels=(32, 32), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        sigma_max=700.0, sigma_min=0.002, timestep_type="continuous", timestep_spacing="leading",
        use_karras_sigmas=True, steps_offset=1,
    )  # fmt: skip
    pipe = diffusers.StableVideoDiffusionPipeline(vae=vae, unet=lively(unet), scheduler=scheduler, **_eyes(224))
    return _ready(pipe)


def _i2vgen() -> DiffusionPipeline:
    unet = _seeded(
        diffusers.I2VGenXLUNet,
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=HIDDEN,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        num_attention_heads=2, attention_head_dim=4,
    )  # fmt: skip
    pipe = diffusers.I2VGenXLPipeline(
        vae=_vae(4), unet=lively(unet), scheduler=unet_schedule(), **_clip_text(), **_eyes(32)
    )
    return _ready(pipe)


_COG_SCHEDULE = {
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}  # fmt: skip


def _cogvideox(name: str, scheduler: Any, **config: Any) -> Callable[[], DiffusionPipeline]:
    def build() -> DiffusionPipeline:
        known = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "max_text_seq_length": 16}
        transformer = _seeded(
            diffusers.CogVideoXTransformer3DModel,
            out_channels=4, time_embed_dim=2, text_embed_dim=HIDDEN, num_layers=2, sample_width=2, sample_height=2,
            sample_frames=9, **{**known, **config},
        )  # fmt: skip
        vae = _seeded(
            diffusers.AutoencoderKLCogVideoX,
            block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            scaling_factor=1.0,
        )  # fmt: skip
        made = {"transformer": lively(transformer, 1.0), "vae": sighted(vae), "scheduler": scheduler(**_COG_SCHEDULE)}
        return _ready(getattr(diffusers, name)(**made, **texts()))

    return build


def _mochi() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.MochiTransformer3DModel,
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=HIDDEN, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLMochi,
        latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5, latents_mean=[0.0] * 12, latents_std=[1.0] * 12,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = diffusers.MochiPipeline(transformer=lively(transformer, 1.0), vae=vae, scheduler=scheduler, **texts())
    return _ready(pipe)


_UNET = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 7.5, **STEPS}
_ROPE = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}  # fmt: skip
_DYNAMIC = {"dynamic guidance": {"use_dynamic_cfg": True}}

CASES: tuple[Case, ...] = (
    Case(
        "CogVideoXPipeline",
        _cogvideox("CogVideoXPipeline", diffusers.CogVideoXDDIMScheduler),
        GUIDED,
        {**PLAIN, **_DYNAMIC},
    ),
    Case(
        "CogVideoXPipeline",
        _cogvideox("CogVideoXPipeline", diffusers.CogVideoXDPMScheduler),
        GUIDED,
        {**NEGATIVE, **UNGUIDED, **_DYNAMIC},
        note="a scheduler that draws noise at every step and uses the x0-prediction of the step before",
    ),
    Case(
        "CogVideoXImageToVideoPipeline",
        _cogvideox("CogVideoXImageToVideoPipeline", diffusers.CogVideoXDPMScheduler, **_ROPE),
        {**GUIDED, "image": picture(1)},
        PLAIN,
    ),
    Case(
        "CogVideoXVideoToVideoPipeline",
        _cogvideox("CogVideoXVideoToVideoPipeline", diffusers.CogVideoXDDIMScheduler),
        {**BY_VIDEO, "video": frames(9), "strength": 0.5, "num_inference_steps": 10},
        NEGATIVE,
    ),
    Case("MochiPipeline", _mochi, {**GUIDED, "num_frames": 7}, {**NEGATIVE, **UNGUIDED, **MASKED}),
    Case("AnimateDiffPipeline", _animatediff, _UNET, PLAIN),
    Case("TextToVideoSDPipeline", _text_to_video_sd, _UNET, PLAIN),
    Case(
        "StableVideoDiffusionPipeline",
        _svd,
        {
            "image": picture(1, 32),
            "height": 32,
            "width": 32,
            "num_frames": 3,
            "min_guidance_scale": 1.0,
            "max_guidance_scale": 2.5,
            **STEPS,
        },
        {
            "no guidance": {"max_guidance_scale": 1.0},
            "noisier picture": {"noise_aug_strength": 0.5},
            "frames decoded in twos": {"decode_chunk_size": 2},
        },
        takes_prompt=False,
        note="its decoder mixes the frames of a chunk: chunks of two, of several clips of three frames, mix clips",
    ),
    Case(
        "I2VGenXLPipeline",
        _i2vgen,
        {**_UNET, "image": picture(1, 32), "target_fps": 8, "clip_skip": None},
        {**NEGATIVE, **UNGUIDED},
        note="not reproducible by seed: the picture's latents are drawn without a generator. Its default, clip_skip=1, "
        "fails with transformers 5",
    ),
)
