"""Cases of SD and SDXL pipelines with an IP adapter: pictures as prompts, through further attention layers.

`load_ip_adapter` gives the unet such weights from a file; here they are random.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.embeddings import ImageProjection
from tiny import HIDDEN, _seeded, tiny_sd, tiny_sdxl

from zoo.case import Case
from zoo.pictures import assembled, clip_images, picture, rows, vision
from zoo.stable_diffusion import GUIDED, MASKED, NEGATIVE, SIZE, UNGUIDED, controlnet


def ip_weights(unet: Any) -> dict[str, Any]:
    """What a file of a plain IP adapter holds, random and with large values, so that the picture has an effect."""
    width = unet.config.cross_attention_dim
    weights = {}
    for number, (name, _layer) in enumerate(unet.attn_processors.items()):
        if name.endswith("attn2.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("to_k_ip", "to_v_ip"):
                weights[f"{number}.{part}.weight"] = rows(hidden, width, seed=number)
    projection = _seeded(ImageProjection, cross_attention_dim=width, image_embed_dim=HIDDEN, num_image_text_embeds=4)
    names = {"image_embeds": "proj", "norm": "norm"}
    state = projection.state_dict().items()
    return {
        "image_proj": {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state},
        "ip_adapter": weights,
    }


def with_ip_adapter(name: str, base: Callable[[], DiffusionPipeline], **parts: Any) -> Callable[[], DiffusionPipeline]:
    plain = assembled(
        name, base, image_encoder=lambda parts: vision(), feature_extractor=lambda parts: clip_images(), **parts
    )

    def build() -> DiffusionPipeline:
        pipe = plain()
        with torch.no_grad():
            pipe.unet._load_ip_adapter_weights([ip_weights(pipe.unet)], low_cpu_mem_usage=False)
        pipe.set_ip_adapter_scale(0.7)
        pipe.unet.eval()
        return pipe

    return build


def _case(name: str, base: Any, arguments: dict[str, Any], **parts: Any) -> Case:
    embeds = rows(2, 1, HIDDEN)  # of no picture and of the picture
    return Case(
        name, with_ip_adapter(name, base, **parts),
        {**GUIDED, **arguments, "ip_adapter_image": picture(4, size=32)},
        {
            **NEGATIVE, **UNGUIDED, "embeds": {"ip_adapter_image": None, "ip_adapter_image_embeds": [embeds]},
            "embeds, no guidance": {
                "ip_adapter_image": None, "ip_adapter_image_embeds": [embeds[1:]], "guidance_scale": 1.0
            },
        },
        note="IP adapter",
    )  # fmt: skip


_image = {"image": picture(), "strength": 0.8}

CASES: tuple[Case, ...] = (
    _case("StableDiffusionPipeline", tiny_sd, SIZE),
    _case("StableDiffusionImg2ImgPipeline", tiny_sd, _image),
    _case("StableDiffusionInpaintPipeline", tiny_sd, {**SIZE, **MASKED}),
    _case("StableDiffusionControlNetPipeline", tiny_sd, {"image": picture()}, controlnet=controlnet),
    _case("StableDiffusionPAGPipeline", tiny_sd, SIZE),
    _case("StableDiffusionXLPipeline", tiny_sdxl, SIZE),
    _case("StableDiffusionXLImg2ImgPipeline", tiny_sdxl, _image),
)
