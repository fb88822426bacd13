"""Video pipelines: younger transformers, among them one with sound (LTX-2)."""

from collections.abc import Callable
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from tiny import (
    _LLM,
    HIDDEN,
    _clip_config,
    _clip_tokenizer,
    _flow,
    _gemma,
    _llm_tokenizer,
    _ready,
    _seeded,
    _t5,
    _t5_tokenizer,
    _vae,
)

from zoo.case import Case
from zoo.transformer_parts import lively
from zoo.video import (
    EMBEDS,
    GUIDED,
    MASKED,
    NEGATIVE,
    PLAIN,
    SMALL,
    STEPS,
    UNGUIDED,
    texts,
    unipc,
    wan_transformer,
    wan_vae,
    without_ftfy,
)
from zoo.video_2 import unet_schedule


def _hunyuan_15() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.HunyuanVideo15Transformer3DModel,
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=HIDDEN, text_embed_2_dim=HIDDEN,
        image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLHunyuanVideo15,
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    text = transformers.Qwen2Config(**{**_LLM, "num_hidden_layers": 3})
    tokenizer = _llm_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>")
    pipe = diffusers.HunyuanVideo15Pipeline(
        transformer=lively(transformer), vae=lively(vae), scheduler=_flow(), tokenizer=tokenizer,
        text_encoder=_seeded(transformers.Qwen2Model, text), text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )  # fmt: skip
    # A thousand tokens of text and 729 of no picture would take seconds.
    pipe.system_message, pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length = "a film", 5, 24
    pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 16, 2
    return _ready(pipe)


def _allegro() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.AllegroTransformer3DModel,
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=HIDDEN,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLAllegro,
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4, latent_channels=4,
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    vae.enable_tiling()  # the only way that it decodes: one clip at a time, in tiles of this size
    vae.kernel = vae.stride = (8, 16, 16)
    pipe = diffusers.AllegroPipeline(
        transformer=lively(transformer), vae=lively(vae), scheduler=unet_schedule(), **texts()
    )
    return _ready(pipe)


def _latte() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.LatteTransformer3DModel,
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, video_length=5,
        caption_channels=HIDDEN, in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    pipe = diffusers.LattePipeline(transformer=lively(transformer), vae=_vae(4), scheduler=unet_schedule(), **texts())
    return _ready(pipe)


def _sana_video() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.SanaVideoTransformer3DModel,
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=HIDDEN,
        sample_size=8, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.SanaVideoPipeline(transformer=lively(transformer), vae=wan_vae(), scheduler=unipc(), **_gemma())
    return _ready(pipe)


def _skyreels(name: str) -> Callable[[], DiffusionPipeline]:
    def build() -> DiffusionPipeline:
        net, kind = wan_transformer(diffusers.SkyReelsV2Transformer3DModel), getattr(diffusers, name)
        without_ftfy(kind)
        return _ready(kind(transformer=net, vae=wan_vae(), scheduler=unipc(), **texts()))

    return build


def _qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_LLM, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 1, "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_heads": 2, "out_hidden_size": HIDDEN,
        },
    )  # fmt: skip
    return _seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)


def _easyanimate() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.EasyAnimateTransformer3DModel,
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=HIDDEN, num_layers=2, sample_width=16, sample_height=16, patch_size=2,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLMagvit,
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3), latent_channels=4,
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3), block_out_channels=(8,) * 4,
        layers_per_block=1, norm_num_groups=2, spatial_group_norm=False,
    )  # fmt: skip
    pipe = diffusers.EasyAnimatePipeline(
        transformer=lively(transformer, 6.0), vae=vae, scheduler=_flow(), text_encoder=_qwen_vl(),
        tokenizer=_llm_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>"),
    )  # fmt: skip
    return _ready(pipe)


def _kandinsky5() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=4, out_visual_dim=4, in_text_dim=HIDDEN, in_text_dim2=HIDDEN, time_dim=16, patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(2, 2, 4), visual_cond=False,
        attention_type="regular",
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLHunyuanVideo,
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    clip = _clip_config()
    clip.max_position_embeddings = 77
    pipe = diffusers.Kandinsky5T2VPipeline(
        transformer=lively(transformer), vae=lively(vae), scheduler=_flow(), text_encoder=_qwen_vl(),
        tokenizer=_llm_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>"),
        text_encoder_2=_seeded(transformers.CLIPTextModel, clip), tokenizer_2=_clip_tokenizer(),
    )  # fmt: skip
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = "a film of {} ", 7
    return _ready(pipe)


def _ltx2() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2, qk_norm="rms_norm_across_heads",
        caption_channels=HIDDEN, rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    kinds = {
        f"{kind}_connector_{name}": value
        for kind in ("video", "audio")
        for name, value in {
            "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None
        }.items()
    }  # fmt: skip
    connectors = _seeded(
        diffusers.pipelines.ltx2.LTX2TextConnectors,
        caption_channels=HIDDEN, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split", **kinds,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLLTX2Video,
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio = _seeded(
        diffusers.AutoencoderKLLTX2Audio,
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0,
        mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = _seeded(
        diffusers.pipelines.ltx2.LTX2Vocoder,
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000,
    )  # fmt: skip
    pipe = diffusers.LTX2Pipeline(
        transformer=lively(transformer), vae=lively(vae), audio_vae=audio, vocoder=vocoder, connectors=connectors,
        scheduler=_flow(), **_gemma(),
    )  # fmt: skip
    return _ready(pipe)


_LTX2 = {
    **SMALL, "height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0, "guidance_scale": 3.0,
    "spatio_temporal_guidance_blocks": None, "stg_scale": 0.0, "audio_stg_scale": 0.0,
}  # fmt: skip

CASES: tuple[Case, ...] = (
    Case(
        "HunyuanVideo15Pipeline",
        _hunyuan_15,
        {"height": 16, "width": 16, "num_frames": 9, **STEPS},
        NEGATIVE,
        note="has a guider; its autoencoder fails with several clips",
    ),
    Case(
        "AllegroPipeline",
        _allegro,
        {**GUIDED, "num_frames": 8, "clean_caption": False},
        {**NEGATIVE, **UNGUIDED, "prompt embeds": {**MASKED["prompt embeds"], "negative_prompt": None}},
        note="its autoencoder decodes one clip at a time, and fails with several",
    ),
    Case(
        "LattePipeline",
        _latte,
        {"height": 16, "width": 16, "video_length": 5, "guidance_scale": 5.0, "clean_caption": False, **STEPS},
        {**NEGATIVE, **UNGUIDED, "prompt embeds": {**EMBEDS["prompt embeds"], "negative_prompt": None}},
        note="cuts the text of one prompt to its length, and keeps the padding of several: another clip for each",
    ),
    Case(
        "SanaVideoPipeline",
        _sana_video,
        {
            "height": 32,
            "width": 32,
            "frames": 9,
            "guidance_scale": 5.0,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "max_sequence_length": 16,
            **STEPS,
        },
        {**NEGATIVE, **UNGUIDED, "prompt embeds": {**MASKED["prompt embeds"], "negative_prompt": None}},
    ),
    Case("SkyReelsV2Pipeline", _skyreels("SkyReelsV2Pipeline"), GUIDED, PLAIN),
    Case(
        "SkyReelsV2DiffusionForcingPipeline",
        _skyreels("SkyReelsV2DiffusionForcingPipeline"),
        GUIDED,
        {**NEGATIVE, **UNGUIDED},
    ),
    Case(
        "EasyAnimatePipeline",
        _easyanimate,
        {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 5.0, "negative_prompt": "", **STEPS},
        {**NEGATIVE, **UNGUIDED},
        note="fails with guidance and without a negative prompt",
    ),
    Case("Kandinsky5T2VPipeline", _kandinsky5, GUIDED, {**NEGATIVE, **UNGUIDED}),
    Case("LTX2Pipeline", _ltx2, _LTX2, NEGATIVE, note="the transformer returns a clip and its sound"),
)
