"""Parts that the tiny pipelines with a transformer share: pictures, masks, embeddings, weights that are not zero.

Random nets of stock classes have layers that start at zero (gates, last projections, the outputs of control nets) and
others so small that a prompt hardly changes the picture; `lively` wakes them, so that a wrong input is seen.
"""

import inspect
import zlib
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, DiffusionPipeline
from PIL import Image
from tiny import HIDDEN, _ready
from torch import nn


def picture(seed: int = 0, size: int = 16, mode: str = "RGB") -> Image.Image:
    """Four by four fields of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    pixels[..., 3] |= 128  # never quite transparent
    return Image.fromarray(pixels).convert(mode).resize((size, size), Image.Resampling.NEAREST)


def mask(size: int = 16) -> Image.Image:
    """White, to be painted, in an off-centre box of a third of the picture."""
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[size // 4 : 7 * size // 8, : size // 2] = 255
    return Image.fromarray(pixels)


def as_tensor(image: Image.Image) -> torch.Tensor:
    """One row in [0, 1], channels first, as image processors take it."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embeddings(*names: str, tokens: int = 16, width: int = HIDDEN) -> dict[str, Any]:
    """The keywords of a call by embeddings instead of a prompt, each with numbers of its own.

    Names with `pooled` get one vector a row, those with `mask` ones.
    """
    call: dict[str, Any] = {"prompt": None}
    for seed, name in enumerate(names):
        if "mask" in name:
            call[name] = torch.ones(1, tokens, dtype=torch.long)
        else:
            call[name] = numbers(1, width, seed=seed) if "pooled" in name else numbers(1, tokens, width, seed=seed)
    return call


def lively(net: nn.Module, scale: float = 2.0) -> nn.Module:
    """Weights that are all zero become random, and the other matrices grow by `scale`; returns the same net.

    Each weight has a generator of its own: one that torch left uninitialised may happen to be zero, or not.
    """
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if not weight.any():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
            elif weight.ndim == 2 and "embedding" not in name:
                weight.mul_(scale)
    return net


def seeing(vae: Any, size: int = 64) -> Any:
    """The same autoencoder whose latents of a picture are about as large as noise, and which paints with contrast.

    Its latents are less uncertain than those of random weights, which hide the picture in noise of their own.
    """
    video = isinstance(vae, AutoencoderKLQwenImage)
    scale = vae.config.get("scaling_factor", 1.0)
    image = as_tensor(picture(9, size, "RGBA" if vae.config.get("input_channels") == 4 else "RGB")) * 2 - 1
    with torch.no_grad():
        if video:  # what its layers add would drown a picture
            for name, weight in vae.named_parameters():
                weight *= not name.endswith("bias")
        mean = vae.encode(image[:, :, None] if video else image).latent_dist.mean
        channels = mean.shape[1]
        for name, weight in vae.quant_conv.named_parameters():
            weight[:channels] /= mean.std() * scale
            if name.endswith("bias"):
                weight[channels:] -= 4.0
        one, other = (vae.decode(numbers(*mean.shape, seed=seed) / scale).sample for seed in (0, 1))
        for weight in vae.decoder.conv_out.parameters():
            weight *= 0.5 / (one - other).std()
    return vae


def with_config(net: Any, **changes: Any) -> Any:
    """A net of the same class whose config differs."""
    config = {key: value for key, value in net.config.items() if not key.startswith("_")}
    torch.manual_seed(0)
    return type(net).from_config({**config, **changes})


def sibling(
    name: str, of: Callable[[], DiffusionPipeline], scale: float = 2.0, **components: Any
) -> Callable[[], DiffusionPipeline]:
    """A builder of the pipeline class of that name with the components of another one, some changed or added.

    A component may be a function of the other ones. Transformers and control nets are made lively.
    """

    def build() -> DiffusionPipeline:
        parts = dict(of().components)
        if isinstance(parts.get("vae"), AutoencoderKL | AutoencoderKLFlux2 | AutoencoderKLQwenImage):
            parts["vae"] = seeing(parts["vae"])
        for key, part in components.items():
            parts[key] = part(parts) if callable(part) and not isinstance(part, nn.Module) else part
        parts["transformer"] = lively(parts["transformer"], scale)
        if isinstance(parts.get("controlnet"), nn.Module):
            lively(parts["controlnet"], scale)
        kind = getattr(diffusers, name)
        known = inspect.signature(kind.__init__).parameters
        return _ready(kind(**{key: part for key, part in parts.items() if key in known}))

    return build
