"""Tiny random pipelines of stock diffusers classes: real code, no weights, no download, well under a second a run.

Every builder returns a pipeline with fixed weights, all components in eval mode, which survives `save_pretrained`.
TINY holds one builder per family, with keywords for a guided call of 4 steps.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from tiny_parts import (
    _LLM,
    HIDDEN,
    LETTERS,
    _clip_config,
    _clip_tokenizer,
    _flow,
    _gemma,
    _llm_tokenizer,  # noqa: F401  others take it from here
    _movq,
    _qwen_tokenizer,
    _ready,
    _seeded,
    _t5,
    _t5_tokenizer,
    _vae,
)
from torch import nn
from zoo.text_to_image import CASES as TEXT_TO_IMAGE


def tiny_sd(scheduler: Any = None) -> DiffusionPipeline:
    """Latents 4 x 8 x 8, images of 16 px."""
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        sample_size=8, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=HIDDEN, attention_head_dim=2,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=_vae(4), text_encoder=_seeded(transformers.CLIPTextModel, _clip_config()), tokenizer=_clip_tokenizer(),
        unet=unet, scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return _ready(pipe)


def tiny_lcm() -> DiffusionPipeline:
    sd = tiny_sd().components
    unet = diffusers.UNet2DConditionModel.from_config(sd["unet"].config, time_cond_proj_dim=8)
    pipe = diffusers.LatentConsistencyModelPipeline(
        **{**sd, "unet": _seeded(type(unet).from_config, unet.config), "scheduler": diffusers.LCMScheduler()},
        requires_safety_checker=False,
    )
    return _ready(pipe)


def tiny_sdxl(scheduler: Any = None) -> DiffusionPipeline:
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        sample_size=8, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * HIDDEN, attention_head_dim=2, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + HIDDEN,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(4), unet=unet, scheduler=scheduler or diffusers.EulerDiscreteScheduler(),
        text_encoder=_seeded(transformers.CLIPTextModel, _clip_config()), tokenizer=_clip_tokenizer(),
        text_encoder_2=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()),
        tokenizer_2=_clip_tokenizer(), add_watermarker=False,
    )  # fmt: skip
    return _ready(pipe)


def tiny_sd3(scheduler: Any = None) -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.SD3Transformer2DModel,
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * HIDDEN, caption_projection_dim=16,
        pooled_projection_dim=2 * HIDDEN, pos_embed_max_size=16,
    )  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler or _flow(), vae=_vae(4),
        text_encoder=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()), tokenizer=_clip_tokenizer(),
        text_encoder_2=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()),
        tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(2 * HIDDEN), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip
    return _ready(pipe)


def _flux_like(build: Any, **config: Any) -> nn.Module:
    return _seeded(
        build,
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=HIDDEN, axes_dims_rope=(4, 2, 2), **config,
    )  # fmt: skip


def tiny_flux(scheduler: Any = None) -> DiffusionPipeline:
    transformer = _flux_like(diffusers.FluxTransformer2DModel, pooled_projection_dim=HIDDEN, guidance_embeds=True)
    pipe = diffusers.FluxPipeline(
        transformer=transformer, scheduler=scheduler or _flow(), vae=_vae(4), text_encoder_2=_t5(),
        text_encoder=_seeded(transformers.CLIPTextModel, _clip_config()), tokenizer=_clip_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_flux2() -> DiffusionPipeline:
    """The Klein pipeline, which shares the transformer of FLUX.2 and has guidance by two calls."""
    transformer = _seeded(
        diffusers.Flux2Transformer2DModel,
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=3 * HIDDEN, axes_dims_rope=(2, 2, 2, 2), timestep_guidance_channels=8,
        guidance_embeds=False,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLFlux2,
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    config = transformers.Qwen3Config(**_LLM, head_dim=8)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=_flow(), vae=vae, text_encoder=_seeded(transformers.Qwen3ForCausalLM, config),
        tokenizer=_qwen_tokenizer(), transformer=transformer,
    )  # fmt: skip
    return _ready(pipe)


def tiny_chroma() -> DiffusionPipeline:
    transformer = _flux_like(
        diffusers.ChromaTransformer2DModel,
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    pipe = diffusers.ChromaPipeline(
        scheduler=_flow(), vae=_vae(4), text_encoder=_t5(), tokenizer=_t5_tokenizer(), transformer=transformer
    )
    return _ready(pipe)


def tiny_qwen_image() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.QwenImageTransformer2DModel,
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=HIDDEN, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLQwenImage,
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_LLM, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 1, "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_heads": 2, "out_hidden_size": HIDDEN,
        },
    )  # fmt: skip
    pipe = diffusers.QwenImagePipeline(
        scheduler=_flow(), vae=vae, text_encoder=_seeded(transformers.Qwen2_5_VLForConditionalGeneration, config),
        tokenizer=_qwen_tokenizer(), transformer=transformer,
    )  # fmt: skip
    return _ready(pipe)


def tiny_z_image() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.ZImageTransformer2DModel,
        in_channels=4, dim=16, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=HIDDEN,
        axes_dims=[4, 2, 2], axes_lens=[256, 32, 32],
    )  # fmt: skip
    config = transformers.Qwen3Config(**_LLM, head_dim=8)
    pipe = diffusers.ZImagePipeline(
        scheduler=_flow(), vae=_vae(4), text_encoder=_seeded(transformers.Qwen3Model, config),
        tokenizer=_qwen_tokenizer(), transformer=transformer,
    )  # fmt: skip
    return _ready(pipe)


def tiny_lumina2() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.Lumina2Transformer2DModel,
        sample_size=8, in_channels=4, hidden_size=16, num_layers=3, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(300, 32, 32), cap_feat_dim=HIDDEN,
    )  # fmt: skip
    pipe = diffusers.Lumina2Pipeline(transformer=transformer, scheduler=_flow(), vae=_vae(4), **_gemma())
    return _ready(pipe)


def tiny_pixart() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.PixArtTransformer2DModel,
        sample_size=8, num_layers=3, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        cross_attention_dim=16, caption_channels=HIDDEN, use_additional_conditions=False,
    )  # fmt: skip
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), vae=_vae(4), transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_sana() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.SanaTransformer2DModel,
        in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=HIDDEN,
        sample_size=8,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderDC,
        latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3, encoder_layers_per_block=(1,) * 3, decoder_layers_per_block=(1,) * 3,
        encoder_qkv_multiscales=((),) * 3, decoder_qkv_multiscales=((),) * 3,
    )  # fmt: skip
    pipe = diffusers.SanaPipeline(vae=vae, transformer=transformer, scheduler=_flow(), **_gemma())
    return _ready(pipe)


def tiny_hunyuan_dit() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.HunyuanDiT2DModel,
        sample_size=8, in_channels=4, patch_size=2, num_layers=4, attention_head_dim=8, num_attention_heads=2,
        hidden_size=16, cross_attention_dim=HIDDEN, cross_attention_dim_t5=HIDDEN, pooled_projection_dim=8,
        mlp_ratio=2.0, use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    pipe = diffusers.HunyuanDiTPipeline(
        vae=_vae(4, blocks=4), text_encoder=_seeded(transformers.BertModel, config), transformer=transformer,
        tokenizer=transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)}),
        scheduler=diffusers.DDPMScheduler(), text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return _ready(pipe)


def tiny_aura_flow() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=HIDDEN, caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip
    config = transformers.UMT5Config(vocab_size=32, d_model=HIDDEN, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipe = diffusers.AuraFlowPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_seeded(transformers.UMT5EncoderModel, config), vae=_vae(4),
        transformer=transformer, scheduler=_flow(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_cogview4() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.CogView4Transformer2DModel,
        in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=HIDDEN, time_embed_dim=8, condition_dim=4, pos_embed_max_size=16, sample_size=8,
        rope_axes_dim=(16, 16),
    )  # fmt: skip
    config = transformers.GlmConfig(**_LLM, head_dim=8)
    pipe = diffusers.CogView4Pipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_seeded(transformers.GlmModel, config), vae=_vae(4),
        transformer=transformer, scheduler=_flow(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_kandinsky22() -> DiffusionPipeline:
    """Prior and decoder in one pipeline, called with a prompt."""
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        in_channels=4, out_channels=8, sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=4,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", addition_embed_type="image", cross_attention_dim=HIDDEN,
        encoder_hid_dim=HIDDEN, encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    prior = _seeded(
        diffusers.PriorTransformer,
        num_attention_heads=2, attention_head_dim=8, embedding_dim=HIDDEN, num_layers=1, num_embeddings=16,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, image_size=32,
        patch_size=16, projection_dim=HIDDEN,
    )  # fmt: skip
    pipe = diffusers.KandinskyV22CombinedPipeline(
        unet=unet, scheduler=diffusers.DDPMScheduler(), movq=_movq(), prior_prior=prior,
        prior_image_encoder=_seeded(transformers.CLIPVisionModelWithProjection, vision),
        prior_text_encoder=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()),
        prior_tokenizer=_clip_tokenizer(), prior_image_processor=transformers.CLIPImageProcessorPil(),
        prior_scheduler=diffusers.UnCLIPScheduler(prediction_type="sample", num_train_timesteps=1000),
    )  # fmt: skip
    return _ready(pipe)


def tiny_kandinsky3() -> DiffusionPipeline:
    unet = _seeded(
        diffusers.Kandinsky3UNet,
        time_embedding_dim=8, groups=2, attention_head_dim=4, layers_per_block=3, block_out_channels=(8, 16),
        cross_attention_dim=16, encoder_hid_dim=HIDDEN,
    )  # fmt: skip
    pipe = diffusers.Kandinsky3Pipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), unet=unet, scheduler=diffusers.DDPMScheduler(), movq=_movq()
    )
    return _ready(pipe)


_GUIDED = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 4.0}
_TRUE_GUIDED = {"height": 16, "width": 16, "num_inference_steps": 4, "true_cfg_scale": 4.0}
_EXACT_SIZE = {"use_resolution_binning": False}

_CLIP = {**_GUIDED, "height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 16}
_PICTURE = {
    "image": Image.new("RGB", (16, 16), (90, 120, 200)), "num_inference_steps": 4, "guidance_scale": 4.0,
    "image_guidance_scale": 1.5,
}  # fmt: skip


def _from_zoo(module: str, pipeline: str) -> Callable[[], DiffusionPipeline]:
    """A builder of the zoo, looked up when it is called: those modules build on this one."""
    return lambda: next(case for case in import_module(f"zoo.{module}").CASES if case.name == pipeline).build()


# family name in FAMILIES -> (builder, keywords of a guided call at 16 px, where latents are 8 x 8)
TINY: dict[str, tuple[Callable[..., DiffusionPipeline], dict[str, Any]]] = {
    "SD 1/2": (tiny_sd, _GUIDED),
    "LCM": (tiny_lcm, _GUIDED),
    "SDXL": (tiny_sdxl, _GUIDED),
    "SD3": (tiny_sd3, {**_GUIDED, "max_sequence_length": 16}),
    "FLUX.1": (tiny_flux, {**_TRUE_GUIDED, "max_sequence_length": 16}),
    "FLUX.2": (tiny_flux2, {**_GUIDED, "max_sequence_length": 20, "text_encoder_out_layers": (0, 1, 2)}),
    "Chroma": (tiny_chroma, {**_GUIDED, "max_sequence_length": 20}),
    "Qwen-Image": (tiny_qwen_image, _TRUE_GUIDED),
    "Z-Image": (tiny_z_image, {**_GUIDED, "max_sequence_length": 20}),
    "Lumina 2": (tiny_lumina2, {**_GUIDED, "height": 64, "width": 64}),
    "PixArt": (tiny_pixart, {**_GUIDED, **_EXACT_SIZE, "clean_caption": False}),
    "Sana": (tiny_sana, {**_GUIDED, **_EXACT_SIZE, "height": 32, "width": 32, "complex_human_instruction": None}),
    "HunyuanDiT": (tiny_hunyuan_dit, {**_GUIDED, **_EXACT_SIZE, "height": 64, "width": 64}),
    "AuraFlow": (tiny_aura_flow, {**_GUIDED, "max_sequence_length": 20}),
    "CogView4": (tiny_cogview4, _GUIDED),
    "Kandinsky 2.2": (tiny_kandinsky22, {**_GUIDED, "prior_num_inference_steps": 2}),
    "Kandinsky 3": (tiny_kandinsky3, {**_GUIDED, "height": 64, "width": 64}),
    **{
        name: next((case.build, case.arguments) for case in TEXT_TO_IMAGE if case.name == f"{pipeline}Pipeline")
        for name, pipeline in {
            "Kolors": "Kolors",
            "HiDream": "HiDreamImage",
            "Qwen-Image 2.1": "QwenImage21",
            "HunyuanImage 2.1": "HunyuanImage",
            "Kandinsky 5": "Kandinsky5T2I",
            "CogView3+": "CogView3Plus",
            "Bria": "Bria",
            "Bria FIBO": "BriaFibo",
            "PRX": "PRX",
            "Ovis-Image": "OvisImage",
            "LongCat-Image": "LongCatImage",
            "Krea 2": "Krea2",
            "Sana Sprint": "SanaSprint",
            "Lumina": "Lumina",
            "NucleusMoE-Image": "NucleusMoEImage",
            "Cosmos 2": "Cosmos2TextToImage",
            "DeepFloyd IF": "IF",
            "OmniGen": "OmniGen",
            "GLM-Image": "GlmImage",
            "ERNIE-Image": "ErnieImage",
            "Ideogram 4": "Ideogram4",
        }.items()
    },
    "InstructPix2Pix": (_from_zoo("stable_diffusion", "StableDiffusionInstructPix2PixPipeline"), _PICTURE),
    "InstructPix2Pix XL": (
        _from_zoo("stable_diffusion_xl", "StableDiffusionXLInstructPix2PixPipeline"),
        {**_PICTURE, "height": 16, "width": 16},
    ),
    "Wan": (_from_zoo("video", "WanPipeline"), _CLIP),
    "LTX-Video": (_from_zoo("video", "LTXPipeline"), {**_CLIP, "height": 32, "width": 32}),
    "CogVideoX": (_from_zoo("video_2", "CogVideoXPipeline"), _CLIP),
    "HunyuanVideo": (
        _from_zoo("video", "HunyuanVideoPipeline"),
        {**_CLIP, "true_cfg_scale": 4.0, "prompt_template": {"template": "{}", "crop_start": 0}},
    ),
    "Mochi": (_from_zoo("video_2", "MochiPipeline"), _CLIP),
}


def tiny_clip(folder: Path) -> Path:
    """A random CLIPModel with tokenizer and image processor, saved in the transformers layout."""
    vision = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "projection_dim": HIDDEN}
    config = transformers.CLIPConfig(text_config=_clip_config().to_dict(), vision_config=vision, projection_dim=HIDDEN)
    _seeded(transformers.CLIPModel, config).eval().save_pretrained(folder)
    _clip_tokenizer().save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return folder
