"""Small parts of the zoo's cases: pictures, masks, rows of random numbers, and ways to change tiny models.

A module of a control net starts with weights of zero, so that a random one has no effect at all. `awake` gives such
weights small values, so that a case shows an error in what the module is given.
"""

import inspect
import zlib
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import HIDDEN, _ready, _seeded
from torch import nn


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 0, size: int = 16, width: int | None = None) -> Image.Image:
    """Colours that change from block to block."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(values).resize((width or size, size), Image.Resampling.BILINEAR)


def mask(size: int = 16) -> Image.Image:
    """White, which is to be painted anew, in a rectangle right of the middle."""
    values = np.zeros((size, size), np.uint8)
    values[size // 4 : -size // 8, size // 2 :] = 255
    return Image.fromarray(values)


def numbers(image: Image.Image) -> np.ndarray:
    """One row, values in [0, 1], channels last."""
    values = np.asarray(image, dtype=np.float32)[None] / 255
    return values if values.ndim == 4 else values[..., None]


def tensor(image: Image.Image) -> torch.Tensor:
    """One row, values in [0, 1], channels first."""
    return torch.from_numpy(numbers(image)).permute(0, 3, 1, 2).contiguous()


def signed(image: Image.Image) -> torch.Tensor:
    """One row, values in [-1, 1], channels first."""
    return 2 * tensor(image) - 1


def awake(module: nn.Module) -> nn.Module:
    """`module`, whose parameters that are all zero now hold small random values."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.any():
                parameter.copy_(0.3 * rows(*parameter.shape, seed=zlib.crc32(name.encode())))
    return module


def stirred(module: nn.Module, seed: int = 0, size: float = 0.15) -> nn.Module:
    """`module` with noise on every parameter, so that it has an effect and differs from one of another seed."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(rows(*parameter.shape, seed=seed), alpha=size)
    return awake(module)


def configured(model: nn.Module, kind: Any) -> dict[str, Any]:
    """Those values of the configuration of `model` that the class `kind` takes."""
    taken = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in model.config.items() if name in taken}


def changed(model: nn.Module, **config: Any) -> nn.Module:
    """A random model of the class of `model`, with another configuration."""
    known = {name: value for name, value in model.config.items() if name != "_use_default_values"}
    return awake(_seeded(type(model).from_config, {**known, **config}))


def vivid(vae: nn.Module) -> nn.Module:
    """Makes the latents of a picture depend on it, as those of a trained VAE do: a random one encodes mostly noise."""
    means = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[:means] *= 15
        vae.quant_conv.weight[means:] *= 0.1
        vae.quant_conv.bias[means:] = -4
    return vae


def vision(size: int = 32) -> nn.Module:
    config = transformers.CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, image_size=size,
        patch_size=size // 2, projection_dim=HIDDEN,
    )  # fmt: skip
    return _seeded(transformers.CLIPVisionModelWithProjection, config)


def clip_images(size: int = 32) -> Any:
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def assembled(name: str, base: Callable[[], DiffusionPipeline], **parts: Any) -> Callable[[], DiffusionPipeline]:
    """A builder of pipelines of the diffusers class `name` from those components of `base()` that it takes.

    parts: more components and settings. One that is a plain function is called with the components; a dict is changes
    of the configuration of the component of that name.
    """

    def build() -> DiffusionPipeline:
        kind = getattr(diffusers, name)
        known = dict(base().components)
        for part, value in parts.items():
            if isinstance(value, dict):
                known[part] = changed(known[part], **value)
        for part in ("vae", "movq"):
            if hasattr(known.get(part), "quant_conv"):
                vivid(known[part])
        with torch.no_grad():  # so that guidance, control and pictures are seen in the result
            for part, layer in (("unet", "conv_out"), ("transformer", "proj_out")):
                if hasattr(known.get(part), layer):
                    getattr(known[part], layer).weight.mul_(3)
        for part, value in parts.items():
            if not isinstance(value, dict):
                known[part] = value(known) if inspect.isfunction(value) else value
        known["requires_safety_checker"] = False
        taken = inspect.signature(kind.__init__).parameters
        return _ready(kind(**{part: value for part, value in known.items() if part in taken}))

    return build
