"""Tiny text-to-image pipelines of the families that `tiny.py` does not build itself.

Text encoders and tokenizers are those of `tiny_parts`. Latents are 8 x 8, and the plain call is guided.
"""

import importlib
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from tiny_parts import (
    _LLM,
    HIDDEN,
    _clip_config,
    _clip_tokenizer,
    _flow,
    _gemma,
    _llm_tokenizer,
    _qwen_tokenizer,
    _ready,
    _seeded,
    _t5,
    _t5_tokenizer,
    _vae,
)
from torch import Tensor, nn

from zoo.case import Case

STEPS = 5
SIZE = {"height": 16, "width": 16, "num_inference_steps": STEPS}
GUIDED = {**SIZE, "guidance_scale": 4.0}
NEGATIVE = {"negative_prompt": "ugly"}
UNGUIDED = {"guidance_scale": 1.0}
SIGMAS = {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]}


def embeds(*shape: int, seed: int = 0) -> Tensor:
    """Some embeddings of a prompt, the same at every call."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def texts(tokens: int, *names: str, dim: int = HIDDEN) -> dict[str, Any]:
    """Keywords of a call by embeddings in place of a prompt: some for every name, a full mask for one with "mask"."""
    made: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    for seed, name in enumerate(names):
        full = torch.ones(1, tokens, dtype=torch.long)
        made[name] = full if "mask" in name else embeds(tokens, dim, seed=seed)
    return made


PAIR = ("prompt_embeds", "negative_prompt_embeds")
ATTENTION_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
EMBEDS_MASKS = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
SECOND = ("prompt_embeds_2", "prompt_embeds_mask_2", "negative_prompt_embeds_2", "negative_prompt_embeds_mask_2")


def awake(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """The model with weights in the layers that start as zeros, which would make every step of a picture alike."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.numel() > 1 and not weights.any():
                weights.copy_(scale * torch.randn(weights.shape, generator=draw))
    return model


def denoiser(build: Any, **config: Any) -> nn.Module:
    return awake(_seeded(build, **config))


class LetterProcessor(transformers.Qwen2Tokenizer):
    """In place of the processors of Qwen's vision models, which want torchvision: texts alone."""

    @property
    def tokenizer(self) -> "LetterProcessor":
        return self

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **keywords: Any) -> Any:
        return super().__call__(text, **keywords)

    def apply_chat_template(self, *args: Any, **keywords: Any) -> Any:
        made = super().apply_chat_template(*args, **keywords)
        return made if isinstance(made, str) else [made]


# Messages as pipelines write them: a text, or a list of parts of which some are texts.
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)


def processor() -> Any:
    made = _llm_tokenizer(LetterProcessor, eos_token="<|endoftext|>", pad_token="<|pad|>", image_token="<|image_pad|>")
    made.chat_template = TEMPLATE
    return made


class ChatGLMLetters(transformers.PreTrainedTokenizerFast):
    """In place of ChatGLM's tokenizer, which wants sentencepiece: letters, padded in front, with positions."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        made = super().__call__(*args, **keywords)
        made["position_ids"] = (made["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return made


def tiny_kolors(img2img: bool = False) -> DiffusionPipeline:
    """The class itself: `diffusers` leaves it out of its names where sentencepiece is not installed."""
    package = importlib.import_module("diffusers.pipelines.kolors.pipeline_kolors" + "_img2img" * img2img)
    parts = importlib.import_module("diffusers.pipelines.kolors.text_encoder")
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        sample_size=8, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), encoder_hid_dim=HIDDEN,
        encoder_hid_dim_type="text_proj", cross_attention_dim=HIDDEN, attention_head_dim=2,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + HIDDEN,
    )  # fmt: skip
    config = parts.ChatGLMConfig(
        num_layers=2, num_hidden_layers=2, padded_vocab_size=40, hidden_size=HIDDEN, ffn_hidden_size=HIDDEN,
        kv_channels=8, num_attention_heads=2, seq_length=300, add_qkv_bias=True, multi_query_attention=True,
        original_rope=True, use_cache=False,
    )  # fmt: skip
    text_encoder = parts.ChatGLMModel(config)
    draw = torch.Generator().manual_seed(0)
    for weights in text_encoder.parameters():  # it leaves them as the memory was
        weights.data = torch.randn(weights.shape, generator=draw) * 0.3
    letters = _qwen_tokenizer()
    tokenizer = ChatGLMLetters(
        tokenizer_object=letters._tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>", padding_side="left"
    )
    cls = package.KolorsImg2ImgPipeline if img2img else package.KolorsPipeline
    pipe = cls(
        vae=_vae(4), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), text_encoder=text_encoder,
        tokenizer=tokenizer,
    )  # fmt: skip
    return _ready(pipe)


def tiny_hidream() -> DiffusionPipeline:
    """Its pictures have the area of the default size, whatever is asked for: here of 16 x 16."""
    transformer = denoiser(
        diffusers.HiDreamImageTransformer2DModel,
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[HIDDEN, HIDDEN], text_emb_dim=2 * HIDDEN, num_routed_experts=2,
        num_activated_experts=1, axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=(0, 1, 1),
    )  # fmt: skip
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=_flow(), vae=_vae(4), transformer=transformer,
        text_encoder=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()), tokenizer=_clip_tokenizer(),
        text_encoder_2=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()),
        tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(), tokenizer_3=_t5_tokenizer(),
        text_encoder_4=_seeded(transformers.LlamaForCausalLM, transformers.LlamaConfig(**_LLM)),
        tokenizer_4=_qwen_tokenizer(),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return _ready(pipe)


def _qwen25_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_LLM, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 1, "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_heads": 2, "out_hidden_size": HIDDEN,
        },
    )  # fmt: skip
    return _seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)


def _qwen3_vl(build: Any, layers: int = 2) -> Any:
    config = transformers.Qwen3VLConfig(
        text_config={
            **_LLM, "num_hidden_layers": layers, "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 1, "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_heads": 2, "out_hidden_size": HIDDEN,
            "deepstack_visual_indexes": [0],
        },
    )  # fmt: skip
    return _seeded(build, config)


def tiny_qwen_image21() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.QwenImage21Transformer2DModel,
        in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        context_in_dim=HIDDEN, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLQwenImage21,
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=_flow(), vae=vae, text_encoder=_qwen3_vl(transformers.Qwen3VLForConditionalGeneration),
        processor=processor(), transformer=transformer,
    )  # fmt: skip
    return _ready(pipe)


def tiny_hunyuan_image() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.HunyuanImageTransformer2DModel,
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=HIDDEN,
        text_embed_2_dim=HIDDEN, rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLHunyuanImage,
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        scaling_factor=1.0, spatial_compression_ratio=2, sample_size=16,
    )  # fmt: skip
    guider = diffusers.guiders.AdaptiveProjectedMixGuidance
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=_flow(), vae=vae, text_encoder=_qwen25_vl(), tokenizer=_qwen_tokenizer(), transformer=transformer,
        text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
        guider=guider(adaptive_projected_guidance_start_step=2),
        ocr_guider=guider(adaptive_projected_guidance_start_step=3),
    )  # fmt: skip
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 128, 16
    return _ready(pipe)


def tiny_kandinsky5() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=4, in_text_dim=HIDDEN, in_text_dim2=HIDDEN, time_dim=8, out_visual_dim=4, model_dim=16,
        ff_dim=16, num_text_blocks=1, num_visual_blocks=3, axes_dims=(4, 2, 2),
    )  # fmt: skip
    clip = _clip_config()
    clip.max_position_embeddings = 77
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=transformer, vae=_vae(4, blocks=4), text_encoder=_qwen25_vl(), tokenizer=processor(),
        text_encoder_2=_seeded(transformers.CLIPTextModel, clip), tokenizer_2=_clip_tokenizer(), scheduler=_flow(),
    )  # fmt: skip
    pipe.resolutions = [(64, 64), (128, 64)]  # of the sizes that it knows, it takes the nearest
    return _ready(pipe)


def tiny_cogview3() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.CogView3PlusTransformer2DModel,
        in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=HIDDEN, time_embed_dim=8, condition_dim=4, pos_embed_max_size=16, sample_size=8,
    )  # fmt: skip
    pipe = diffusers.CogView3PlusPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), vae=_vae(4), transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # fmt: skip
    return _ready(pipe)


def _bria_like(build: Any, **config: Any) -> nn.Module:
    return denoiser(
        build,
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        axes_dims_rope=[4, 2, 2], **config,
    )  # fmt: skip


def tiny_bria() -> DiffusionPipeline:
    pipe = diffusers.BriaPipeline(
        transformer=_bria_like(diffusers.BriaTransformer2DModel, joint_attention_dim=HIDDEN), scheduler=_flow(),
        vae=_vae(4), text_encoder=_t5(), tokenizer=_t5_tokenizer(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_bria_fibo() -> DiffusionPipeline:
    transformer = _bria_like(
        diffusers.BriaFiboTransformer2DModel, joint_attention_dim=2 * HIDDEN, text_encoder_dim=HIDDEN
    )
    vae = _seeded(
        diffusers.AutoencoderKLWan,
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, out_channels=12, in_channels=12, patch_size=2,
        scale_factor_spatial=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
    )  # fmt: skip
    config = transformers.SmolLM3Config(**{**_LLM, "vocab_size": 128001})  # an empty text is token 128000
    pipe = diffusers.BriaFiboPipeline(
        transformer=transformer, scheduler=_flow(), vae=vae, tokenizer=_qwen_tokenizer(),
        text_encoder=_seeded(transformers.SmolLM3ForCausalLM, config),
    )  # fmt: skip
    return _ready(pipe)


def _t5_gemma() -> dict[str, Any]:
    parts = importlib.import_module("transformers.models.t5gemma")
    config = parts.T5GemmaModuleConfig(
        **{**_LLM, "num_hidden_layers": 1}, head_dim=8, query_pre_attn_scalar=8, layer_types=["full_attention"],
        dropout_rate=0.0,
    )  # fmt: skip
    return {**_gemma(), "text_encoder": _seeded(parts.modeling_t5gemma.T5GemmaEncoder, config)}


def tiny_prx(pixel: bool = False) -> DiffusionPipeline:
    config = {
        "patch_size": 2, "context_in_dim": HIDDEN, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2, "depth": 3,
        "axes_dim": [4, 4],
    }  # fmt: skip
    for pipeline in (diffusers.PRXPipeline, diffusers.PRXPixelPipeline):
        module: Any = importlib.import_module(pipeline.__module__)
        if not hasattr(module, "ftfy"):  # they call this optional package whether or not it is installed
            module.ftfy = SimpleNamespace(fix_text=str)
    if pixel:
        transformer = denoiser(diffusers.PRXTransformer2DModel, in_channels=3, **config)
        language = transformers.Qwen3Config(**_LLM, head_dim=8)
        pipe = diffusers.PRXPixelPipeline(
            transformer=transformer, scheduler=_flow(), text_encoder=_seeded(transformers.Qwen3Model, language),
            tokenizer=_qwen_tokenizer(), prompt_max_tokens=16,
        )  # fmt: skip
        return _ready(pipe)
    transformer = denoiser(diffusers.PRXTransformer2DModel, in_channels=4, **config)
    pipe = diffusers.PRXPipeline(transformer=transformer, scheduler=_flow(), vae=_vae(4), **_t5_gemma())
    return _ready(pipe)


def _flux_like(build: Any, **config: Any) -> nn.Module:
    return denoiser(
        build,
        num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=HIDDEN, axes_dims_rope=(4, 2, 2), **config,
    )  # fmt: skip


def tiny_ovis() -> DiffusionPipeline:
    transformer = _flux_like(diffusers.OvisImageTransformer2DModel, in_channels=16, out_channels=16)
    tokenizer = _qwen_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = transformers.Qwen3Config(**_LLM, head_dim=8)
    pipe = diffusers.OvisImagePipeline(
        scheduler=_flow(), vae=_vae(4), text_encoder=_seeded(transformers.Qwen3Model, config),
        tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip
    return _ready(pipe)


def tiny_longcat() -> DiffusionPipeline:
    transformer = _flux_like(diffusers.LongCatImageTransformer2DModel, in_channels=64, pooled_projection_dim=HIDDEN)
    pipe = diffusers.LongCatImagePipeline(
        scheduler=_flow(), vae=_vae(16), text_encoder=_qwen25_vl(), tokenizer=_qwen_tokenizer(),
        text_processor=processor(), transformer=transformer,
    )  # fmt: skip
    pipe.tokenizer_max_length = 32
    return _ready(pipe)


def _qwen_vae() -> nn.Module:
    return _seeded(
        diffusers.AutoencoderKLQwenImage,
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def tiny_krea2() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.Krea2Transformer2DModel,
        in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, timestep_embed_dim=8, text_hidden_dim=HIDDEN, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    pipe = diffusers.Krea2Pipeline(
        scheduler=_flow(), vae=_qwen_vae(), text_encoder=_qwen3_vl(transformers.Qwen3VLModel),
        tokenizer=_qwen_tokenizer(), transformer=transformer, text_encoder_select_layers=(0, 1, 2),
    )  # fmt: skip
    return _ready(pipe)


def tiny_sana_sprint() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.SanaTransformer2DModel,
        in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=HIDDEN,
        sample_size=8, guidance_embeds=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderDC,
        latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3, encoder_layers_per_block=(1,) * 3, decoder_layers_per_block=(1,) * 3,
        encoder_qkv_multiscales=((),) * 3, decoder_qkv_multiscales=((),) * 3,
    )  # fmt: skip
    pipe = diffusers.SanaSprintPipeline(
        vae=vae, transformer=transformer, scheduler=diffusers.SCMScheduler(), **_gemma()
    )
    return _ready(pipe)


def tiny_lumina() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.LuminaNextDiT2DModel,
        sample_size=8, in_channels=4, hidden_size=16, num_layers=3, num_attention_heads=2, num_kv_heads=1,
        multiple_of=8, cross_attention_dim=HIDDEN,
    )  # fmt: skip
    pipe = diffusers.LuminaPipeline(transformer=transformer, scheduler=_flow(), vae=_vae(4, blocks=4), **_gemma())
    return _ready(pipe)


def tiny_nucleus() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.NucleusMoEImageTransformer2DModel,
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=HIDDEN, axes_dims_rope=(4, 2, 2), num_experts=2, moe_intermediate_dim=16,
        dense_moe_strategy="leave_first_block_dense", capacity_factors=[2.0] * 3,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    for name, weights in transformer.named_parameters():
        if ".experts." in name:  # it leaves them as the memory was
            weights.data = 0.2 * torch.randn(weights.shape, generator=draw)
    pipe = diffusers.NucleusMoEImagePipeline(
        transformer=transformer, scheduler=_flow(), vae=_qwen_vae(), processor=processor(),
        text_encoder=_qwen3_vl(transformers.Qwen3VLForConditionalGeneration, layers=8),
    )  # fmt: skip
    return _ready(pipe)


class NoSafetyChecker(diffusers.ModelMixin, diffusers.ConfigMixin):
    """In place of Cosmos' guardrail, a package of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def tiny_cosmos2() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.CosmosTransformer3DModel,
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=3, mlp_ratio=2,
        text_embed_dim=HIDDEN, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False,
        extra_pos_embed_type=None,
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLWan,
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = diffusers.Cosmos2TextToImagePipeline(
        text_encoder=_t5(), tokenizer=_t5_tokenizer(), transformer=transformer, vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=NoSafetyChecker(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_if() -> DiffusionPipeline:
    """In pixels, 8 x 8."""
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        in_channels=3, out_channels=6, sample_size=8, block_out_channels=(8, 8, 16), layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", addition_embed_type="text", addition_embed_type_num_heads=2,
        cross_attention_dim=HIDDEN, encoder_hid_dim=HIDDEN, encoder_hid_dim_type="text_proj", attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", act_fn="gelu",
    )  # fmt: skip
    pipe = diffusers.IFPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), unet=unet,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range"), safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    return _ready(pipe)


def tiny_omnigen() -> DiffusionPipeline:
    """Guided in every call; its negative prompt is fixed."""
    module: Any = importlib.import_module("diffusers.pipelines.omnigen.processor_omnigen")
    if not hasattr(module, "transforms"):  # without torchvision it cannot be built, even for texts alone
        nothing = dict.fromkeys(["Compose", "Lambda", "ToTensor", "Normalize"], lambda *args, **keywords: None)
        module.transforms = SimpleNamespace(**nothing)
        user: Any = importlib.import_module("diffusers.pipelines.omnigen.pipeline_omnigen")
        user.OmniGenMultiModalProcessor = module.OmniGenMultiModalProcessor
    transformer = denoiser(
        diffusers.OmniGenTransformer2DModel,
        in_channels=4, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=16,
        num_layers=3, pad_token_id=0, vocab_size=40, time_step_dim=8,
        rope_scaling={"long_factor": [1] * 4, "short_factor": [1] * 4},
    )  # fmt: skip
    pipe = diffusers.OmniGenPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            invert_sigmas=True, num_train_timesteps=1
        ),
        vae=_vae(4, blocks=4), tokenizer=_qwen_tokenizer(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_glm_image() -> DiffusionPipeline:
    """Without the language model that draws the picture's outline in tokens: calls bring `prior_token_ids`."""
    transformer = denoiser(
        diffusers.GlmImageTransformer2DModel,
        in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=HIDDEN, time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip
    vae = _vae(4)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipe = diffusers.GlmImagePipeline(
        tokenizer=_t5_tokenizer(), processor=None, text_encoder=_t5(), vision_language_encoder=None, vae=vae,
        transformer=transformer, scheduler=_flow(),
    )  # fmt: skip
    return _ready(pipe)


def _flux2_vae() -> nn.Module:
    return _seeded(
        diffusers.AutoencoderKLFlux2,
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def tiny_ernie() -> DiffusionPipeline:
    transformer = denoiser(
        diffusers.ErnieImageTransformer2DModel,
        hidden_size=16, num_attention_heads=2, num_layers=3, ffn_hidden_size=16, in_channels=16, out_channels=16,
        text_in_dim=HIDDEN, rope_axes_dim=(4, 2, 2),
    )  # fmt: skip
    config = transformers.Qwen3Config(**_LLM, head_dim=8)
    pipe = diffusers.ErnieImagePipeline(
        transformer=transformer, vae=_flux2_vae(), text_encoder=_seeded(transformers.Qwen3Model, config),
        tokenizer=_qwen_tokenizer(), scheduler=_flow(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_ideogram4() -> DiffusionPipeline:
    """Two denoisers, one of which never sees the prompt."""
    config = {
        "in_channels": 16, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "intermediate_size": 16,
        "adaln_dim": 8, "llm_features_dim": 13 * HIDDEN, "mrope_section": (2, 1, 1),
    }  # fmt: skip
    unconditional = denoiser(diffusers.Ideogram4Transformer2DModel, **config)
    pipe = diffusers.Ideogram4Pipeline(
        scheduler=_flow(), vae=_flux2_vae(), text_encoder=_qwen3_vl(transformers.Qwen3VLModel, layers=36),
        tokenizer=processor(), transformer=denoiser(diffusers.Ideogram4Transformer2DModel, **config),
        unconditional_transformer=awake(unconditional, 0.3),
    )  # fmt: skip
    return _ready(pipe)


CASES: tuple[Case, ...] = (
    Case(
        "KolorsPipeline",
        tiny_kolors,
        GUIDED,
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(9, HIDDEN),
                "negative_prompt_embeds": embeds(9, HIDDEN, seed=1),
                "pooled_prompt_embeds": embeds(HIDDEN),
                "negative_pooled_prompt_embeds": embeds(HIDDEN, seed=1),
            },
        },
    ),
    Case(
        "KolorsImg2ImgPipeline",
        lambda: tiny_kolors(img2img=True),
        {
            "image": Image.new("RGB", (16, 16), (90, 120, 200)),
            "strength": 0.8,
            "num_inference_steps": STEPS,
            "guidance_scale": 4.0,
        },
        {"negative prompt": NEGATIVE, "no guidance": UNGUIDED, "strength 0.5": {"strength": 0.5}},
    ),
    Case(
        "HiDreamImagePipeline",
        tiny_hidream,
        {**GUIDED, "max_sequence_length": 16},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "sigmas": SIGMAS,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds_t5": embeds(16, HIDDEN),
                "prompt_embeds_llama3": embeds(2, 16, HIDDEN)[0][:, None],
                "negative_prompt_embeds_t5": embeds(16, HIDDEN, seed=1),
                "negative_prompt_embeds_llama3": embeds(2, 16, HIDDEN, seed=1)[0][:, None],
                "pooled_prompt_embeds": embeds(2 * HIDDEN),
                "negative_pooled_prompt_embeds": embeds(2 * HIDDEN, seed=1),
            },
        },
    ),
    Case(
        "QwenImage21Pipeline",
        tiny_qwen_image21,
        {"height": 128, "width": 128, "num_inference_steps": STEPS, "true_cfg_scale": 4.0, "negative_prompt": " "},
        {
            "negative prompt": NEGATIVE,
            "no guidance": {"true_cfg_scale": 1.0},
            "sigmas": SIGMAS,
            "no key and value cache": {"use_kv_cache": False},
            "prompt embeds": texts(9, *PAIR, *EMBEDS_MASKS),
        },
    ),
    Case(
        "HunyuanImagePipeline",
        tiny_hunyuan_image,
        SIZE,
        {"negative prompt": NEGATIVE, "sigmas": SIGMAS, "prompt embeds": texts(16, *PAIR, *EMBEDS_MASKS, *SECOND)},
    ),
    Case(
        "Kandinsky5T2IPipeline",
        tiny_kandinsky5,
        {**GUIDED, "height": 64, "width": 64, "max_sequence_length": 512},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds_qwen": embeds(9, HIDDEN),
                "prompt_embeds_clip": embeds(HIDDEN),
                "prompt_cu_seqlens": torch.tensor([0, 9], dtype=torch.int32),
                "negative_prompt_embeds_qwen": embeds(9, HIDDEN, seed=1),
                "negative_prompt_embeds_clip": embeds(HIDDEN, seed=1),
                "negative_prompt_cu_seqlens": torch.tensor([0, 9], dtype=torch.int32),
            },
        },
    ),
    Case(
        "CogView3PlusPipeline",
        tiny_cogview3,
        {**GUIDED, "max_sequence_length": 16},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(16, HIDDEN),
                "negative_prompt_embeds": embeds(16, HIDDEN, seed=1),
            },
        },
    ),
    Case(
        "BriaPipeline",
        tiny_bria,
        {**GUIDED, "max_sequence_length": 16},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(16, HIDDEN),
                "negative_prompt_embeds": embeds(16, HIDDEN, seed=1),
            },
        },
    ),
    Case(
        "BriaFiboPipeline",
        tiny_bria_fibo,
        {**GUIDED, "height": 128, "width": 128},
        {"negative prompt": NEGATIVE, "no guidance": UNGUIDED},
    ),
    Case(
        "PRXPipeline",
        tiny_prx,
        {**GUIDED, "use_resolution_binning": False, "skip_text_cleaning": True, **NEGATIVE},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {**texts(9, *PAIR), **dict.fromkeys(ATTENTION_MASKS, torch.ones(1, 9, dtype=torch.bool))},
        },
    ),
    Case(
        "PRXPixelPipeline",
        lambda: tiny_prx(pixel=True),
        {**GUIDED, "use_resolution_binning": False, **NEGATIVE},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {**texts(9, *PAIR), **dict.fromkeys(ATTENTION_MASKS, torch.ones(1, 9, dtype=torch.bool))},
        },
    ),
    Case(
        "OvisImagePipeline",
        tiny_ovis,
        {**GUIDED, "max_sequence_length": 200},
        {"negative prompt": NEGATIVE, "no guidance": UNGUIDED, "sigmas": SIGMAS, "prompt embeds": texts(9, *PAIR)},
    ),
    Case(
        "LongCatImagePipeline",
        tiny_longcat,
        {**GUIDED, "enable_prompt_rewrite": False},
        {"negative prompt": NEGATIVE, "no guidance": UNGUIDED, "sigmas": SIGMAS},
        note="`prompt_embeds` without a prompt fail in the stock class",
    ),
    Case(
        "Krea2Pipeline",
        tiny_krea2,
        {**GUIDED, "max_sequence_length": 160},
        {
            "negative prompt": NEGATIVE,
            "no guidance": {"guidance_scale": 0.0},
            "sigmas": SIGMAS,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(9, 3, HIDDEN),
                "negative_prompt_embeds": embeds(9, 3, HIDDEN, seed=1),
                **dict.fromkeys(EMBEDS_MASKS, torch.ones(1, 9, dtype=torch.bool)),
            },
        },
    ),
    Case(
        "SanaSprintPipeline",
        tiny_sana_sprint,
        {
            **GUIDED,
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "intermediate_timesteps": None,
        },
        {
            "2 steps": {"num_inference_steps": 2, "intermediate_timesteps": 1.3},
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(9, HIDDEN),
                "prompt_attention_mask": torch.ones(1, 9),
            },
        },
    ),
    Case(
        "LuminaPipeline",
        tiny_lumina,
        {**GUIDED, "height": 64, "width": 64, "clean_caption": False, **NEGATIVE},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "sigmas": SIGMAS,
            "prompt embeds": texts(9, *PAIR, *ATTENTION_MASKS),
        },
    ),
    Case(
        "NucleusMoEImagePipeline",
        tiny_nucleus,
        GUIDED,
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "sigmas": SIGMAS,
            "prompt embeds": texts(8, *PAIR, *EMBEDS_MASKS),
        },
    ),
    Case(
        "Cosmos2TextToImagePipeline",
        tiny_cosmos2,
        {**GUIDED, "max_sequence_length": 16},
        {"negative prompt": NEGATIVE, "no guidance": UNGUIDED, "prompt embeds": texts(16, *PAIR)},
    ),
    Case(
        "IFPipeline",
        tiny_if,
        {"num_inference_steps": STEPS, "guidance_scale": 4.0, "clean_caption": False, "height": 8, "width": 8},
        {
            "negative prompt": NEGATIVE,
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(77, HIDDEN),
                "negative_prompt_embeds": embeds(77, HIDDEN, seed=1),
            },
        },
    ),
    Case(
        "OmniGenPipeline",
        tiny_omnigen,
        {**GUIDED, "height": 64, "width": 64},
        {"guidance 2": {"guidance_scale": 2.0}},
        note="always guided; torchvision is replaced by nothing, so calls with pictures fail",
    ),
    Case(
        "GlmImagePipeline",
        tiny_glm_image,
        {**GUIDED, "prior_token_ids": torch.arange(16)[None], "max_sequence_length": 32},
        {
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": embeds(8, HIDDEN),
                "negative_prompt_embeds": embeds(8, HIDDEN, seed=1),
            },
        },
        note="without `prior_token_ids` it draws them with the first generator's seed, for every row of the batch",
    ),
    Case(
        "ErnieImagePipeline",
        tiny_ernie,
        {**GUIDED, "height": 32, "width": 32, "use_pe": False, **NEGATIVE},
        {
            "no guidance": UNGUIDED,
            "prompt embeds": {
                "prompt": None,
                "prompt_embeds": [embeds(9, HIDDEN)[0]],
                "negative_prompt_embeds": [embeds(9, HIDDEN, seed=1)[0]],
            },
        },
    ),
    Case(
        "Ideogram4Pipeline",
        tiny_ideogram4,
        {**GUIDED, "guidance_schedule": None, "max_sequence_length": 32},
        {"a guidance for each step": {"guidance_scale": None, "guidance_schedule": [4.0, 4.0, 3.0, 2.0, 1.0]}},
    ),
)
