"""Published text-to-image architectures with random weights: built on the device, nothing is downloaded.

Denoiser, autoencoder and CLIP text encoders have the published shapes. What is smaller: the tokenizers know single
letters only, SD3.5 has no T5 (a published way to run it: zeros stand for its 256 tokens), and the T5 of FLUX.1 has one
layer of 24. So text costs less here than it would; every candidate has the same text, and probeselect encodes it once.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers

from probeselect.backbones.loading import Backbone
from probeselect.core.stage import Stage
from probeselect.probe.config import Head, ProbeConfig
from probeselect.probe.files import Probe
from probeselect.probe.scorer import ProbeScorer

N, RUNG = 5, 0.2
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Model:
    """One row: what is built, and how it is measured. `wave`: most candidates in one call."""

    name: str
    build: Callable[[str], Any]  # device ("meta" for shapes alone) -> pipeline
    million: int  # parameters of the denoiser
    pixels: int
    steps: int
    wave: int
    seconds: float  # of a GPU's time to be measured in; with one of 40 GB or less FLUX.1 does not fit
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16


@contextmanager
def _on(device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Modules that are built inside have random weights of this type, made on the device."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(usual)


def _clip_tokenizer() -> Any:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in LETTERS:
        vocab[letter] = len(vocab)
        vocab[f"{letter}</w>"] = len(vocab)
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def _clip(kind: str, projection: bool) -> Any:
    width, layers, heads = {"L": (768, 12, 12), "bigG": (1280, 32, 20)}[kind]
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads, num_hidden_layers=layers,
        vocab_size=54, projection_dim=width, max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def _t5() -> Any:
    config = transformers.T5Config(
        vocab_size=32, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=1, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config)


def _vae(latent_channels: int, **config: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **config,
    )  # fmt: skip


def _discrete(scheduler: Any, **more: Any) -> Any:
    return scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **more)


def sd15(device: str) -> Any:
    with _on(device):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        text, vae = _clip("L", projection=False), _vae(4, sample_size=512)
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=_clip_tokenizer(), unet=unet, safety_checker=None,
        scheduler=_discrete(diffusers.DDIMScheduler, clip_sample=False), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl(device: str) -> Any:
    with _on(device):
        unet = diffusers.UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816, use_linear_projection=True,
        )  # fmt: skip
        texts = _clip("L", projection=False), _clip("bigG", projection=True)
        vae = _vae(4, sample_size=1024, scaling_factor=0.13025)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae, unet=unet, text_encoder=texts[0], text_encoder_2=texts[1], tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(), scheduler=_discrete(diffusers.EulerDiscreteScheduler), add_watermarker=False,
    )  # fmt: skip


def _vae16(scaling: float, shift: float) -> Any:
    return _vae(
        16,
        sample_size=1024,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sd35_medium(device: str) -> Any:
    with _on(device):
        transformer = diffusers.SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, attention_head_dim=64, joint_attention_dim=4096,
            caption_projection_dim=1536, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
            pos_embed_max_size=384,
        )  # fmt: skip
        texts, vae = (_clip("L", projection=True), _clip("bigG", projection=True)), _vae16(1.5305, 0.0609)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=texts[0], tokenizer=_clip_tokenizer(), text_encoder_2=texts[1], tokenizer_2=_clip_tokenizer(),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux_dev(device: str) -> Any:
    with _on(device):
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
        texts, vae = (_clip("L", projection=False), _t5()), _vae16(0.3611, 0.1159)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=texts[0], tokenizer=_clip_tokenizer(),
        text_encoder_2=texts[1], tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


GUIDED = {"guidance_scale": 5.0}
MODELS = (  # smallest first
    Model("SD 1.5", sd15, 860, 512, 20, 40, 60, GUIDED),
    Model("SD3.5 medium", sd35_medium, 2243, 1024, 10, 10, 140, GUIDED),
    Model("SDXL", sdxl, 2567, 1024, 20, 10, 110, GUIDED),
    Model("FLUX.1-dev", flux_dev, 11901, 1024, 10, 5, 200, {"guidance_scale": 3.5}),
)
ON_A_CPU = {"SD 1.5": {"pixels": 192, "steps": 10, "seconds": 600.0}}  # what can be measured in minutes


def ready(pipe: Any, model: Model, device: str) -> Any:
    """The pipeline as `from_pretrained` would give it: in evaluation mode, of one type, on the device."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device=device, dtype=model.dtype)


def untrained_scorer(name: str, backbone: Backbone, stage: Stage) -> ProbeScorer:
    """A probe for the taps of a stage, of the width that training gives it, with a head of one number."""
    about, taps, text = backbone.describe(), list(stage.maps), stage.prompt_embeddings
    channels = [maps.shape[1] for maps in stage.maps.values()]
    config = ProbeConfig(
        backbone=name, denoiser=about.denoiser, architecture=about.architecture, rungs=(0.05, 0.95),
        latent_channels=about.latent_channels, taps=tuple(taps), tap_channels=tuple(channels),
        projected_channels=tuple(min(48, each) for each in channels), heads=(Head("none", "scalar"),), width=48,
        prompt_width=0 if text is None else text.shape[1],
        grid=min(32, *(side for maps in stage.maps.values() for side in maps.shape[2:])),
    )  # fmt: skip
    return ProbeScorer(Probe(config).to(stage.maps[taps[0]].device), name="untrained")
