"""Cases of older families: Kandinsky 2.1, Amused, which draws in tokens, AltDiffusion, and edits by example."""

from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from tiny import (
    HIDDEN,
    _clip_config,
    _clip_tokenizer,
    _movq,
    _ready,
    _seeded,
    _t5_tokenizer,
    tiny_kandinsky22,
    tiny_sd,
)

from zoo.case import Case
from zoo.pictures import assembled, changed, clip_images, mask, picture, stirred, tensor
from zoo.stable_diffusion import ETA, GUIDED, NEGATIVE, SIZE, STRENGTHS, UNGUIDED

ROBERTA = {
    "vocab_size": 32, "hidden_size": HIDDEN, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
    "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


KANDINSKY_UNET = {"encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}


def kandinsky_text(parts: dict[str, Any]) -> Any:
    return _seeded(MultilingualCLIP, MCLIPConfig(transformerDimSize=HIDDEN, imageDimSize=HIDDEN, **ROBERTA))


def kandinsky_prior(parts: dict[str, Any]) -> Any:
    return stirred(parts["prior_prior"], size=0.5)


def _kandinsky(name: str, arguments: dict[str, Any], variants: dict[str, Any], **config: Any) -> Case:
    build = assembled(
        name, tiny_kandinsky22, unet={**KANDINSKY_UNET, **config}, text_encoder=kandinsky_text,
        prior_prior=kandinsky_prior,
        tokenizer=lambda parts: _t5_tokenizer(), scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    )  # fmt: skip
    arguments = {**GUIDED, **SIZE, "prior_num_inference_steps": 2, **arguments}
    return Case(name, build, arguments, {**NEGATIVE, **UNGUIDED, **variants})


def tiny_amused() -> DiffusionPipeline:
    transformer = _seeded(
        diffusers.UVit2DModel,
        hidden_size=8, cond_embed_dim=HIDDEN, micro_cond_encode_dim=2, micro_cond_embed_dim=10,
        encoder_hidden_size=HIDDEN, vocab_size=9, codebook_size=8, in_channels=8, block_out_channels=8,
        num_res_blocks=1, block_num_heads=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        sample_size=8,
    )  # fmt: skip
    pipe = diffusers.AmusedPipeline(
        vqvae=changed(_movq(), lookup_from_codebook=True), transformer=stirred(transformer, size=0.05),
        tokenizer=_clip_tokenizer(),
        text_encoder=_seeded(transformers.CLIPTextModelWithProjection, _clip_config()),
        scheduler=diffusers.AmusedScheduler(mask_token_id=8),
    )  # fmt: skip
    return _ready(pipe)


def alt_text(parts: dict[str, Any]) -> Any:
    config = RobertaSeriesConfig(**ROBERTA, project_dim=HIDDEN)
    return stirred(_seeded(RobertaSeriesModelWithTransformation, config), size=0.3)


def example_encoder(parts: dict[str, Any]) -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=16, num_attention_heads=2, num_hidden_layers=5, image_size=32,
        patch_size=16, projection_dim=HIDDEN,
    )  # fmt: skip
    return _seeded(PaintByExampleImageEncoder, config, proj_size=HIDDEN)


_image = {"image": picture(), "strength": 0.8}
_masked = {"image": picture(), "mask_image": mask()}
_cycle_noise = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
_weak = {**GUIDED, "guidance_scale": 2.0}
_amused = {"temperature 1": {"temperature": 1.0}, **NEGATIVE, **UNGUIDED}

CASES: tuple[Case, ...] = (
    _kandinsky("KandinskyCombinedPipeline", {}, {}),
    _kandinsky("KandinskyImg2ImgCombinedPipeline", _image, STRENGTHS),
    _kandinsky("KandinskyInpaintCombinedPipeline", _masked, {}, in_channels=9),
    Case("AmusedPipeline", tiny_amused, {**_weak, **SIZE}, _amused),
    Case("AmusedImg2ImgPipeline", assembled("AmusedImg2ImgPipeline", tiny_amused), {**_weak, **_image}, _amused),
    Case("AmusedInpaintPipeline", assembled("AmusedInpaintPipeline", tiny_amused), {**_weak, **_masked}, _amused),
    Case(
        "AltDiffusionPipeline",
        assembled(
            "AltDiffusionPipeline", tiny_sd, text_encoder=alt_text, tokenizer=lambda parts: _t5_tokenizer(),
            image_encoder=None,
        ),
        {**GUIDED, **SIZE}, {**NEGATIVE, **UNGUIDED, **ETA},
    ),
    Case(
        "PaintByExamplePipeline",
        assembled(
            "PaintByExamplePipeline", tiny_sd, unet={"in_channels": 9}, image_encoder=example_encoder,
            feature_extractor=lambda parts: clip_images(),
        ),
        {**GUIDED, **SIZE, **_masked, "example_image": picture(5, size=32)},
        {**UNGUIDED, "tensor image": {"image": 2 * tensor(picture()) - 1, "mask_image": tensor(mask())}},
        takes_prompt=False,
    ),
    Case(
        "CycleDiffusionPipeline", assembled("CycleDiffusionPipeline", tiny_sd, scheduler=_cycle_noise),
        {**GUIDED, **_image, "source_prompt": "a dog", "eta": 0.1}, {**STRENGTHS, **UNGUIDED, "eta 1": {"eta": 1.0}},
    ),
)  # fmt: skip
