"""Default taps of published architectures: which block, and the shape of the map that a probe gets of it.

Denoisers are built on the meta device from the configurations of the released models, so nothing is computed and no
weight is held. What a forward pass reads in Python (positions, shapes of pictures) is given on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from probeselect.backbones.families import FAMILIES
from probeselect.backbones.taps import Tap, TokenGrid


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta")


def times(rows: int) -> Tensor:
    return torch.ones(rows, device="meta")


def positions(height: int, width: int, axes: int = 3) -> Tensor:
    """[tokens, axes] of one picture, as FLUX numbers them."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None]
    return ids.flatten(0, 1)


@dataclass(frozen=True)
class Published:
    """A released model.

    build, config: class of the denoiser and what its config.json says. call: keywords of one denoiser call for one
    prompt, with guidance where it is batched. tap, shape: the default tap, and the map's [rows, C, H, W].
    """

    name: str
    family: str
    build: Any
    config: dict[str, Any]
    call: Callable[[], dict[str, Any]]
    tap: str
    shape: tuple[int, int, int, int]


def unet_call(latents: int, text: int, pooled: int = 0) -> Callable[[], dict[str, Any]]:
    added = {"added_cond_kwargs": {"text_embeds": zeros(2, pooled), "time_ids": zeros(2, 6)}} if pooled else {}
    return lambda: {
        "sample": zeros(2, 4, latents, latents), "timestep": times(1), "encoder_hidden_states": zeros(2, 77, text),
        **added,
    }  # fmt: skip


def sd3_call() -> dict[str, Any]:
    return {
        "hidden_states": zeros(2, 16, 128, 128), "encoder_hidden_states": zeros(2, 333, 4096),
        "pooled_projections": zeros(2, 2048), "timestep": times(2),
    }  # fmt: skip


def flux_call() -> dict[str, Any]:
    return {
        "hidden_states": zeros(1, 4096, 64), "encoder_hidden_states": zeros(1, 512, 4096), "timestep": times(1),
        "pooled_projections": zeros(1, 768), "guidance": times(1), "img_ids": positions(64, 64),
        "txt_ids": torch.zeros(512, 3),
    }  # fmt: skip


def klein_call(text: int) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "hidden_states": zeros(1, 4096, 128), "encoder_hidden_states": zeros(1, 512, text), "timestep": times(1),
        "img_ids": positions(64, 64, 4)[None], "txt_ids": torch.zeros(1, 512, 4),
    }  # fmt: skip


def qwen_call() -> dict[str, Any]:
    return {
        "hidden_states": zeros(1, 83 * 83, 64), "encoder_hidden_states": zeros(1, 100, 3584), "timestep": times(1),
        "img_shapes": [[(1, 83, 83)]],
    }  # fmt: skip


SD_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
}
KLEIN = {
    "patch_size": 1, "in_channels": 128, "attention_head_dim": 128, "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0, "axes_dims_rope": (32, 32, 32, 32), "rope_theta": 2000, "eps": 1e-6, "guidance_embeds": False,
}  # fmt: skip
SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048, "out_channels": 16,
}  # fmt: skip

PUBLISHED = (
    # unet/config.json of stable-diffusion-v1-5 and of stable-diffusion-2-1, as they are known
    Published(
        "SD 1.5, 512 px", "SD 1/2", diffusers.UNet2DConditionModel,
        {**SD_BLOCKS, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        unet_call(64, 768), "up_blocks.2.resnets.1", (2, 640, 32, 32),
    ),
    Published(
        "SD 2.1, 768 px", "SD 1/2", diffusers.UNet2DConditionModel,
        {**SD_BLOCKS, "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
         "use_linear_projection": True},
        unet_call(96, 1024), "up_blocks.2.resnets.1", (2, 640, 48, 48),
    ),
    # scripts/convert_original_stable_diffusion_to_diffusers.py and unet/config.json of stable-diffusion-xl-base-1.0
    Published(
        "SDXL, 1024 px", "SDXL", diffusers.UNet2DConditionModel,
        {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "sample_size": 128,
         "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
         "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
         "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
        unet_call(128, 2048, pooled=1280), "up_blocks.1.resnets.1", (2, 640, 64, 64),
    ),
    # scripts/convert_sd3_to_diffusers.py: as many heads of 64 channels as layers
    Published(
        "SD3 Medium, 1024 px", "SD3", diffusers.SD3Transformer2DModel,
        {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
        sd3_call, "transformer_blocks.20", (2, 1536, 64, 64),
    ),
    Published(
        "SD3.5 Medium, 1024 px", "SD3", diffusers.SD3Transformer2DModel,
        {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
         "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        sd3_call, "transformer_blocks.20", (2, 1536, 64, 64),
    ),
    Published(
        "SD3.5 Large, 1024 px", "SD3", diffusers.SD3Transformer2DModel,
        {**SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
         "qk_norm": "rms_norm"},
        sd3_call, "transformer_blocks.20", (2, 2432, 64, 64),
    ),
    # scripts/convert_flux_to_diffusers.py: the defaults of the class
    Published(
        "FLUX.1-dev, 1024 px", "FLUX.1", diffusers.FluxTransformer2DModel, {"in_channels": 64, "guidance_embeds": True},
        flux_call, "transformer_blocks.9", (1, 3072, 64, 64),
    ),
    # scripts/convert_flux2_to_diffusers.py, klein-4b and klein-9b
    Published(
        "FLUX.2 Klein 4B, 1024 px", "FLUX.2", diffusers.Flux2Transformer2DModel,
        {**KLEIN, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
        klein_call(7680), "transformer_blocks.4", (1, 3072, 64, 64),
    ),
    Published(
        "FLUX.2 Klein 9B, 1024 px", "FLUX.2", diffusers.Flux2Transformer2DModel,
        {**KLEIN, "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
        klein_call(12288), "transformer_blocks.7", (1, 4096, 64, 64),
    ),
    # transformer/config.json of Qwen/Qwen-Image, as it is known: the defaults of the class
    Published(
        "Qwen-Image, 1328 px", "Qwen-Image", diffusers.QwenImageTransformer2DModel,
        {"patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
         "num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56)},
        qwen_call, "transformer_blocks.33", (1, 3072, 83, 83),
    ),
    # transformer/config.json of Tongyi-MAI/Z-Image-Turbo, as it is known
    Published(
        "Z-Image, 1024 px", "Z-Image", diffusers.ZImageTransformer2DModel,
        {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 3840, "n_layers": 30,
         "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
         "axes_lens": [1536, 512, 512]},
        lambda: {"x": [zeros(16, 1, 128, 128)] * 2, "t": times(2), "cap_feats": [zeros(77, 2560), zeros(5, 2560)]},
        "layers.16", (2, 3840, 64, 64),
    ),
    # scripts/convert_wan_to_diffusers.py, Wan-T2V-14B
    Published(
        "Wan 2.1 14B, 480 x 832 px, 81 frames", "Wan", diffusers.WanTransformer3DModel,
        {"attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-6, "ffn_dim": 13824, "freq_dim": 256,
         "in_channels": 16, "num_attention_heads": 40, "num_layers": 40, "out_channels": 16, "patch_size": (1, 2, 2),
         "qk_norm": "rms_norm_across_heads", "text_dim": 4096},
        lambda: {"hidden_states": zeros(1, 16, 21, 60, 104), "encoder_hidden_states": zeros(1, 512, 4096),
                 "timestep": times(1)},
        "blocks.22", (1, 5120, 30, 52),
    ),
)  # fmt: skip


def on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def output_of(module: nn.Module, denoiser: nn.Module, call: dict[str, Any]) -> Any:
    kept: list[Any] = []
    module.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad(), torch.device("meta"):
        denoiser(**{name: on_meta(value) for name, value in call.items()})
    (output,) = kept
    return output


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.name)
def test_the_default_tap_of_a_published_model_gives_a_map_of_this_shape(model: Published) -> None:
    family = next(family for family in FAMILIES if family.name == model.family)
    with torch.device("meta"):
        denoiser = model.build(**model.config).eval()
    tap = Tap.parse(family.default_tap(denoiser), family)
    assert tap.name == model.tap
    call = model.call()
    output = output_of(tap.module(denoiser), denoiser, call)
    found = tap.map(output, TokenGrid.of(denoiser, (), call, axes=family.latents))
    assert tuple(found.shape) == model.shape
