"""Cases of DeepFloyd IF, which draws in pixels, of Kandinsky 2.2 and 3, and of Stable Cascade and Wuerstchen."""

from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from tiny import (
    HIDDEN,
    _clip_config,
    _clip_tokenizer,
    _ready,
    _seeded,
    _t5,
    _t5_tokenizer,
    tiny_kandinsky3,
    tiny_kandinsky22,
)

from zoo.case import Case
from zoo.pictures import assembled, changed, clip_images, mask, numbers, picture, rows, stirred, tensor, vision

STEPS = {"num_inference_steps": 5}
GUIDED = {**STEPS, "guidance_scale": 4.0}
SIZE = {"height": 16, "width": 16}
NEGATIVE = {"negative prompt": {"negative_prompt": "a dog"}}
UNGUIDED = {"no guidance": {"guidance_scale": 1.0}}
STRENGTHS = {
    "strength 0.5": {"strength": 0.5, "num_inference_steps": 8},
    "strength 1.0": {"strength": 1.0, "num_inference_steps": 8},
}
IMAGE_KINDS = {"tensor image": {"image": tensor(picture())}, "numpy image": {"image": numbers(picture())}}


def tiny_if() -> DiffusionPipeline:
    unet = _seeded(
        diffusers.UNet2DConditionModel,
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=4,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", addition_embed_type="text", addition_embed_type_num_heads=2,
        cross_attention_dim=2 * HIDDEN, encoder_hid_dim=HIDDEN, cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift", act_fn="gelu",
    )  # fmt: skip
    noise = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5, variance_type="learned_range"
    )
    pipe = diffusers.IFPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), unet=unet, scheduler=noise, safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    return _ready(pipe)


def _if(name: str, arguments: dict[str, Any], variants: dict[str, Any]) -> Case:
    parts: dict[str, Any] = {}
    if "SuperResolution" in name:
        parts["unet"] = {"in_channels": 6, "class_embed_type": "timestep"}
        parts["image_noising_scheduler"] = diffusers.DDPMScheduler()
    return Case(name, assembled(name, tiny_if, **parts), {**GUIDED, **arguments}, {**NEGATIVE, **UNGUIDED, **variants})


def kandinsky22_unet(**config: Any) -> Any:
    return lambda parts: stirred(changed(parts["unet"], **config), size=0.05)


def kandinsky22_prior(parts: dict[str, Any]) -> Any:
    return stirred(parts["prior_prior"], size=0.5)


def _decoder(name: str, arguments: dict[str, Any], variants: dict[str, Any], **config: Any) -> Case:
    """A decoder of Kandinsky 2.2, which gets what the prior made of a prompt."""
    name = f"KandinskyV22{name}Pipeline"
    embeds = {"image_embeds": rows(1, HIDDEN), "negative_image_embeds": rows(1, HIDDEN, seed=1)}
    return Case(
        name, assembled(name, tiny_kandinsky22, unet=kandinsky22_unet(**config)),
        {**GUIDED, **SIZE, **embeds, **arguments}, {**UNGUIDED, **variants},
        takes_prompt=False, note="called with embeddings of a picture",
    )  # fmt: skip


def _combined(name: str, arguments: dict[str, Any], variants: dict[str, Any], **config: Any) -> Case:
    name = f"KandinskyV22{name}CombinedPipeline"
    build = assembled(name, tiny_kandinsky22, unet=kandinsky22_unet(**config), prior_prior=kandinsky22_prior)
    arguments = {**GUIDED, **SIZE, "prior_num_inference_steps": 2, **arguments}
    return Case(name, build, arguments, {**NEGATIVE, **UNGUIDED, **variants})


def cascade_prior(parts: dict[str, Any]) -> Any:
    net = _seeded(
        diffusers.models.StableCascadeUNet,
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, conditioning_dim=HIDDEN,
        block_out_channels=(16, 16), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=HIDDEN,
        clip_text_in_channels=HIDDEN, clip_text_pooled_in_channels=HIDDEN,
    )  # fmt: skip
    return stirred(net, size=0.1)


def cascade_decoder(parts: dict[str, Any]) -> Any:
    plain, attentive = ("SDCascadeResBlock", "SDCascadeTimestepBlock"), ("SDCascadeAttnBlock",)
    net = _seeded(
        diffusers.models.StableCascadeUNet,
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, patch_size=2, conditioning_dim=HIDDEN,
        block_out_channels=(8, 16), num_attention_heads=(-1, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), block_types_per_layer=(plain, plain + attentive), effnet_in_channels=4,
        clip_text_pooled_in_channels=HIDDEN, clip_seq=4,
    )  # fmt: skip
    return stirred(net, size=0.1)


def _paella(scale_factor: float) -> Any:
    """Random decoders make large latents, which only a small factor keeps from being cut to black and white."""
    kind = PaellaVQModel
    net = _seeded(kind, bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=8, scale_factor=scale_factor)
    return stirred(net, size=0.1)


def tiny_cascade() -> DiffusionPipeline:
    text = _seeded(transformers.CLIPTextModelWithProjection, _clip_config())
    tokenizer = _clip_tokenizer()
    pipe = diffusers.StableCascadeCombinedPipeline(
        tokenizer=tokenizer, text_encoder=text, decoder=cascade_decoder({}), vqgan=_paella(0.01),
        scheduler=diffusers.DDPMWuerstchenScheduler(), prior_prior=cascade_prior({}), prior_text_encoder=text,
        prior_tokenizer=tokenizer, prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
        prior_feature_extractor=clip_images(), prior_image_encoder=vision(),
    )  # fmt: skip
    return _ready(pipe)


def tiny_cascade_prior() -> DiffusionPipeline:
    return tiny_cascade().prior_pipe


def tiny_wuerstchen() -> DiffusionPipeline:
    text = _seeded(transformers.CLIPTextModel, _clip_config())
    tokenizer = _clip_tokenizer()
    decoder = _seeded(
        WuerstchenDiffNeXt,
        c_r=8, c_cond=HIDDEN, c_hidden=[8, 16], nhead=[-1, 2], blocks=[1, 1], level_config=["CT", "CTA"],
        inject_effnet=[False, True], effnet_embd=4, clip_embd=HIDDEN, dropout=[0.0, 0.0],
    )  # fmt: skip
    prior = _seeded(WuerstchenPrior, c_in=4, c=16, c_cond=HIDDEN, c_r=8, depth=2, nhead=2)
    pipe = diffusers.WuerstchenCombinedPipeline(
        tokenizer=tokenizer, text_encoder=text, decoder=stirred(decoder, size=0.1), vqgan=_paella(0.2),
        scheduler=diffusers.DDPMWuerstchenScheduler(), prior_tokenizer=tokenizer, prior_text_encoder=text,
        prior_prior=stirred(prior, size=0.1), prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )  # fmt: skip
    return _ready(pipe)


_image = {"image": picture(), "strength": 0.8}
_masked = {"image": picture(), "mask_image": mask()}
_embeds = {
    "prompt embeds": {
        "prompt": None,
        "prompt_embeds": rows(1, 77, HIDDEN),
        "negative_prompt_embeds": rows(1, 77, HIDDEN, seed=1),
    }
}
_low = {"image": picture(3, size=8)}
_noisier = {"noise level 100": {"noise_level": 100}}
_original = {**_low, "original_image": picture(), "strength": 0.8}
_hint = {"hint": rows(1, 3, 64, 64)}
_hinted = {"in_channels": 8, "addition_embed_type": "image_hint"}
_cascade = {"height": 86, "width": 86, "num_inference_steps": 5, "prior_num_inference_steps": 5}
_guided_decoder = {"guided decoder": {"decoder_guidance_scale": 2.0}}

CASES: tuple[Case, ...] = (
    _if("IFPipeline", SIZE, {**_embeds, "timesteps": {"timesteps": [900, 700, 400, 200, 50]}}),
    _if("IFImg2ImgPipeline", _image, {**_embeds, **STRENGTHS, **IMAGE_KINDS}),
    _if("IFInpaintingPipeline", {**_masked, "strength": 0.8}, {**_embeds, **STRENGTHS}),
    _if("IFSuperResolutionPipeline", {**SIZE, **_low}, {**_embeds, **_noisier}),
    _if("IFImg2ImgSuperResolutionPipeline", _original, {**STRENGTHS, **_noisier}),
    _if("IFInpaintingSuperResolutionPipeline", {**_original, "mask_image": mask()}, {**STRENGTHS, **_noisier}),
    _decoder("", {}, {"latents": {"latents": rows(1, 4, 8, 8)}}),
    _decoder("Img2Img", _image, {**STRENGTHS, "tensor image": IMAGE_KINDS["tensor image"]}),
    _decoder("Inpaint", _masked, {}, in_channels=9),
    _decoder("Controlnet", _hint, {}, **_hinted),
    _decoder("ControlnetImg2Img", {**_hint, **_image}, STRENGTHS, **_hinted),
    _combined("Img2Img", _image, STRENGTHS),
    _combined("Inpaint", _masked, {"no prior guidance": {"prior_guidance_scale": 1.0}}, in_channels=9),
    Case(
        "Kandinsky3Img2ImgPipeline", assembled("Kandinsky3Img2ImgPipeline", tiny_kandinsky3),
        {**GUIDED, **_image},
        # With more strength a change of 1e-7 in what this random model gives moves the stock picture by 0.2.
        {
            **NEGATIVE, **UNGUIDED, "strength 0.5": STRENGTHS["strength 0.5"],
            "tensor image": IMAGE_KINDS["tensor image"],
        },
    ),
    Case(
        "StableCascadeDecoderPipeline", assembled("StableCascadeDecoderPipeline", tiny_cascade, latent_dim_scale=8.0),
        {**STEPS, "image_embeddings": rows(1, 4, 4, 4), "guidance_scale": 2.0},
        {**NEGATIVE, "no guidance": {"guidance_scale": 0.0}},
    ),
    Case(
        "StableCascadePriorPipeline", tiny_cascade_prior, {**GUIDED, "height": 128, "width": 128},
        {**NEGATIVE, **UNGUIDED, "images": {"images": [picture(size=32)]}}, note="returns embeddings of a picture",
    ),
    Case(
        "StableCascadeCombinedPipeline", tiny_cascade, _cascade,
        {**NEGATIVE, "no guidance": {"prior_guidance_scale": 1.0}, **_guided_decoder},
    ),
    Case(
        "WuerstchenCombinedPipeline", tiny_wuerstchen, _cascade,
        {**NEGATIVE, "no guidance": {"prior_guidance_scale": 0.0}, **_guided_decoder},
    ),
)  # fmt: skip
