"""Video pipelines: Wan 2.1 and 2.2, LTX, HunyuanVideo, CogVideoX and Mochi. More of them: `video_2.py`.

A clip has 5 or 9 frames of 16 or 32 px. Nets are made lively, so that clips of two seeds, and of two prompts, differ.
"""

import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import _LLM, HIDDEN, _clip_config, _clip_tokenizer, _flow, _llm_tokenizer, _ready, _seeded, _t5, _t5_tokenizer
from torch import nn

from zoo.case import Case
from zoo.transformer_parts import as_tensor, embeddings, lively, mask, picture

STEPS = {"num_inference_steps": 5}
SMALL = {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16, **STEPS}
NEGATIVE = {"negative prompt": {"negative_prompt": "bad blurry clip"}}
UNGUIDED = {"no guidance": {"guidance_scale": 1.0}}
EMBEDS = {"prompt embeds": embeddings("prompt_embeds", "negative_prompt_embeds")}
MASKED = {
    "prompt embeds": embeddings(
        "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
    )
}
PLAIN = {**NEGATIVE, **UNGUIDED, **EMBEDS}


def frames(count: int, size: int = 16) -> list[Image.Image]:
    return [picture(seed, size) for seed in range(count)]


def texts() -> dict[str, Any]:
    return {"text_encoder": _t5(), "tokenizer": _t5_tokenizer()}


def sighted(vae: Any) -> Any:
    """The same autoencoder, whose latents of a clip are as large as noise: those of a random one are nearly zero."""
    clip = 2 * torch.cat([as_tensor(frame) for frame in frames(9)]).movedim(0, 1)[None] - 1  # [1, 3, F, H, W]
    with torch.no_grad():
        means = vae.encode(clip).latent_dist.mean
        last = getattr(vae, "quant_conv", None) or vae.encoder.conv_out
        for parameter in last.parameters():
            parameter[: means.shape[1]] /= means.std()
    return vae


def wan_vae(latent_channels: int = 16, **config: Any) -> nn.Module:
    """Latents of an eighth of the side and a quarter of the frames."""
    known = {"latents_mean": [0.0] * latent_channels, "latents_std": [1.0] * latent_channels}
    vae = _seeded(
        diffusers.AutoencoderKLWan,
        base_dim=16, z_dim=latent_channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], **known, **config,
    )  # fmt: skip
    return sighted(lively(vae)) if vae.config.in_channels == 3 else lively(vae)


def wan_transformer(kind: Any = diffusers.WanTransformer3DModel, channels: int = 16, **config: Any) -> nn.Module:
    known = {"in_channels": channels, "out_channels": channels, "num_layers": 2}
    net = _seeded(
        kind,
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, text_dim=HIDDEN, freq_dim=32, ffn_dim=32,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **{**known, **config},
    )  # fmt: skip
    return lively(net, 1.0)


def unipc(**config: Any) -> Any:
    known = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return diffusers.UniPCMultistepScheduler(**{**known, **config})


def without_ftfy(kind: type) -> None:
    """These pipelines clean prompts with ftfy where it is not installed too, and fail then: a fault of diffusers."""
    module = sys.modules[kind.__module__]
    if not hasattr(module, "ftfy"):
        module.ftfy = SimpleNamespace(fix_text=str)


def _wan(name: str, **parts: Any) -> Callable[[], DiffusionPipeline]:
    """A builder; a part that is a function is called."""
    kind = getattr(diffusers, name)

    def build() -> DiffusionPipeline:
        known = {"transformer": wan_transformer, "vae": wan_vae, "scheduler": unipc, **parts}
        made = {key: part() if inspect.isfunction(part) else part for key, part in known.items()}
        without_ftfy(kind)
        return _ready(kind(**texts(), **made))

    return build


def _second_expert(**config: Any) -> nn.Module:
    """Another transformer than the first, so that the wrong one at a step is seen."""
    net = wan_transformer(**config)
    return lively(net, 1.5)


def _wan_22_ti2v() -> DiffusionPipeline:
    """The 5B model: one transformer, a time for each token, patches of two pixels in the autoencoder."""
    vae = wan_vae(
        48, in_channels=12, out_channels=12, is_residual=True, patch_size=2, scale_factor_spatial=16,
        scale_factor_temporal=4,
    )  # fmt: skip
    return _wan(
        "WanPipeline", transformer=lambda: wan_transformer(channels=48), vae=lambda: vae, expand_timesteps=True
    )()


def _wan_eyes() -> dict[str, Any]:
    config = transformers.CLIPVisionConfig(
        hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=16,
        intermediate_size=16, patch_size=8,
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    return {
        "image_encoder": _seeded(transformers.CLIPVisionModelWithProjection, config),
        "image_processor": transformers.CLIPImageProcessorPil(crop_size=size, size={"shortest_edge": 16}),
    }


def _wan_i2v() -> DiffusionPipeline:
    return _wan("WanImageToVideoPipeline", transformer=lambda: _i2v_net(image_dim=4), **_wan_eyes())()


def _i2v_net(**config: Any) -> nn.Module:
    return wan_transformer(in_channels=36, **config)


def _wan_22_i2v() -> DiffusionPipeline:
    return _wan(
        "WanImageToVideoPipeline",
        transformer=_i2v_net, transformer_2=lambda: _second_expert(in_channels=36), image_encoder=None,
        image_processor=None, boundary_ratio=0.9,
    )()  # fmt: skip


def _wan_vace() -> DiffusionPipeline:
    net = wan_transformer(diffusers.WanVACETransformer3DModel, num_layers=3, vace_layers=[0, 2], vace_in_channels=96)
    return _wan("WanVACEPipeline", transformer=lambda: net)()


def _ltx(name: str) -> Callable[[], DiffusionPipeline]:
    def build() -> DiffusionPipeline:
        transformer = _seeded(
            diffusers.LTXVideoTransformer3DModel,
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=2, caption_channels=HIDDEN,
        )  # fmt: skip
        vae = _seeded(
            diffusers.AutoencoderKLLTXVideo,
            latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, upsample_residual=(False,) * 4,
            spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
            decoder_spatio_temporal_scaling=(True, True, False, False), upsample_factor=(1,) * 4, patch_size=1,
            patch_size_t=1,
        )  # fmt: skip
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        return _ready(
            getattr(diffusers, name)(transformer=lively(transformer), vae=lively(vae), scheduler=_flow(), **texts())
        )

    return build


def _llama() -> dict[str, Any]:
    tokenizer = _llm_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>")
    config = transformers.LlamaConfig(**{**_LLM, "num_hidden_layers": 4})
    return {"tokenizer": tokenizer, "text_encoder": _seeded(transformers.LlamaModel, config)}


def _hunyuan() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.HunyuanVideoTransformer3DModel,
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=HIDDEN,
        pooled_projection_dim=HIDDEN, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = _seeded(
        diffusers.AutoencoderKLHunyuanVideo,
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    clip = _clip_config()
    clip.max_position_embeddings = 77
    pipe = diffusers.HunyuanVideoPipeline(
        transformer=lively(transformer), vae=lively(vae), scheduler=_flow(), **_llama(),
        text_encoder_2=_seeded(transformers.CLIPTextModel, clip), tokenizer_2=_clip_tokenizer(),
    )  # fmt: skip
    return _ready(pipe)


GUIDED = {**SMALL, "guidance_scale": 5.0}
_LTX = {**SMALL, "height": 32, "width": 32, "guidance_scale": 3.0}
BY_VIDEO = {name: value for name, value in GUIDED.items() if name != "num_frames"}
CASES: tuple[Case, ...] = (
    Case("WanPipeline", _wan("WanPipeline"), GUIDED, PLAIN, note="2.1: one transformer"),
    Case(
        "WanPipeline",
        _wan("WanPipeline", transformer_2=_second_expert, boundary_ratio=0.875),
        GUIDED,
        {**PLAIN, "a guidance for each": {"guidance_scale": 5.0, "guidance_scale_2": 2.0}},
        note="2.2: a transformer for steps with much noise, another one for the rest",
    ),
    Case(
        "WanPipeline",
        _wan_22_ti2v,
        {**GUIDED, "height": 32, "width": 32},
        PLAIN,
        note="2.2 5B: a time for each token",
    ),
    Case(
        "WanImageToVideoPipeline",
        _wan_i2v,
        {**GUIDED, "image": picture(1)},
        PLAIN,
        note="2.1: with an image encoder",
    ),
    Case(
        "WanImageToVideoPipeline",
        _wan_22_i2v,
        {**GUIDED, "image": picture(1)},
        {**PLAIN, "last image": {"last_image": picture(2)}},
        note="2.2: two transformers",
    ),
    Case(
        "WanVideoToVideoPipeline",
        _wan("WanVideoToVideoPipeline"),
        {**BY_VIDEO, "video": frames(9), "strength": 0.5, "num_inference_steps": 10},
        {**PLAIN, "full strength": {"strength": 1.0, "num_inference_steps": 5}},
    ),
    Case(
        "WanVACEPipeline",
        _wan_vace,
        {**GUIDED, "video": frames(9), "mask": [mask(16)] * 9},
        {**NEGATIVE, **UNGUIDED, "reference": {"reference_images": [picture(5)]}},
        note="one prompt a call",
    ),
    Case("LTXPipeline", _ltx("LTXPipeline"), _LTX, {**NEGATIVE, **UNGUIDED, **MASKED}),
    Case(
        "LTXImageToVideoPipeline",
        _ltx("LTXImageToVideoPipeline"),
        {**_LTX, "image": picture(1, 32)},
        {**NEGATIVE, **UNGUIDED, **MASKED},
    ),
    Case(
        "HunyuanVideoPipeline",
        _hunyuan,
        {**SMALL, "guidance_scale": 6.0, "prompt_template": {"template": "{}", "crop_start": 0}},
        {
            "true guidance": {"true_cfg_scale": 3.0, "negative_prompt": "bad blurry clip"},
            "prompt embeds": embeddings("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"),
        },
    ),
)
