"""The table of families: who belongs to which row, and which tap a real model's depth leads to.

That rows, calls and layouts are as the table says is tested on running pipelines in test_taps.py.
"""

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from tiny import TINY, tiny_sd
from torch import nn

from probeselect.backbones.families import FAMILIES, Family, family_of, prompt_keywords
from probeselect.core.errors import UsageError


def stub(class_name: str) -> Any:
    """An object whose class has this name, with both kinds of denoiser."""
    return type(class_name, (), {"unet": nn.Identity(), "transformer": nn.Identity()})()


def row(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def test_every_row_is_proven_by_a_tiny_pipeline() -> None:
    assert list(TINY) == [family.name for family in FAMILIES]


@pytest.mark.parametrize("name", TINY)
def test_a_pipeline_finds_its_row(name: str) -> None:
    pipe = TINY[name][0]()
    assert family_of(pipe).name == name
    denoiser = getattr(pipe, family_of(pipe).denoiser)
    assert denoiser.get_submodule(family_of(pipe).default_tap(denoiser)) is not None


@pytest.mark.parametrize(
    ("class_name", "family"),
    [
        ("StableDiffusionImg2ImgPipeline", "SD 1/2"),
        ("StableDiffusionControlNetInpaintPipeline", "SD 1/2"),
        ("StableDiffusionXLInpaintPipeline", "SDXL"),
        ("StableDiffusionXLControlNetUnionImg2ImgPipeline", "SDXL"),
        ("StableDiffusion3ControlNetInpaintingPipeline", "SD3"),
        ("LatentConsistencyModelImg2ImgPipeline", "LCM"),
        ("FluxFillPipeline", "FLUX.1"),
        ("FluxKontextInpaintPipeline", "FLUX.1"),
        ("FluxControlImg2ImgPipeline", "FLUX.1"),
        ("Flux2Pipeline", "FLUX.2"),
        ("Flux2KleinInpaintPipeline", "FLUX.2"),
        ("ChromaInpaintPipeline", "Chroma"),
        ("QwenImageEditPlusPipeline", "Qwen-Image"),
        ("ZImageControlNetInpaintPipeline", "Z-Image"),
        ("PixArtAlphaPipeline", "PixArt"),
        ("SanaControlNetPipeline", "Sana"),
        ("CogView4ControlPipeline", "CogView4"),
        ("KandinskyV22Pipeline", "Kandinsky 2.2"),
        ("Kandinsky3Img2ImgPipeline", "Kandinsky 3"),
        ("KolorsImg2ImgPipeline", "Kolors"),
        ("Kandinsky5I2IPipeline", "Kandinsky 5"),
        ("BriaFiboEditPipeline", "Bria FIBO"),
        ("PRXPixelPipeline", "PRX"),
        ("LongCatImageEditPipeline", "LongCat-Image"),
        ("SanaSprintImg2ImgPipeline", "Sana Sprint"),
        ("IFInpaintingPipeline", "DeepFloyd IF"),
        ("StableDiffusionInstructPix2PixPipeline", "InstructPix2Pix"),
        ("WanImageToVideoPipeline", "Wan"),
        ("WanVACEPipeline", "Wan"),
        ("LTXImageToVideoPipeline", "LTX-Video"),
        ("CogVideoXVideoToVideoPipeline", "CogVideoX"),
        ("CogVideoXFunControlPipeline", "CogVideoX"),
        ("HunyuanVideoImageToVideoPipeline", "HunyuanVideo"),
    ],
)
def test_variants_belong_to_their_family(class_name: str, family: str) -> None:
    assert hasattr(diffusers, class_name)
    assert family_of(stub(class_name)).name == family


@pytest.mark.parametrize(
    "class_name",
    [
        "StableDiffusionPAGPipeline",  # adds perturbed rows
        "StableDiffusion3PAGImg2ImgPipeline",
        "Flux2KleinKVPipeline",  # reference tokens before the image, in some calls only
        "QwenImageLayeredPipeline",  # several images
        "ZImageOmniPipeline",  # text before the image
        "KolorsPAGPipeline",
        "BriaFibo2Pipeline",  # text before the image in some calls, behind it in others
        "HunyuanImageRefinerPipeline",
        "Kandinsky5T2VPipeline",  # tokens in another order where attention is sparse
        "IFSuperResolutionPipeline",
        "LTXConditionPipeline",  # tokens of given frames before the clip's own
        "HunyuanVideoFramepackPipeline",
        "HunyuanSkyreelsImageToVideoPipeline",  # one batch, where HunyuanVideo has calls
        "WanAnimatePipeline",
    ],
)
def test_pipelines_that_order_rows_otherwise_are_not_taken_for_a_family(class_name: str) -> None:
    assert hasattr(diffusers, class_name)
    family = family_of(stub(class_name))
    assert family not in FAMILIES and family.name == class_name
    with pytest.raises(UsageError, match=f"tap: {class_name} is not in the table .* such as tap="):
        family.default_tap(nn.Identity())


def test_a_users_subclass_belongs_to_the_family_of_its_base() -> None:
    class Mine(diffusers.StableDiffusionPipeline):
        pass

    assert family_of(Mine(**tiny_sd().components, requires_safety_checker=False)).name == "SD 1/2"


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    with pytest.raises(UsageError, match="SimpleNamespace has neither a `transformer` nor a `unet`"):
        family_of(SimpleNamespace(prior=nn.Identity()))


@pytest.mark.parametrize(
    ("family", "blocks", "depth", "tap"),
    [
        ("SD3", "transformer_blocks", 24, "transformer_blocks.20"),
        ("SD3", "transformer_blocks", 38, "transformer_blocks.20"),
        ("SD3", "transformer_blocks", 12, "transformer_blocks.10"),
        ("FLUX.1", "transformer_blocks", 19, "transformer_blocks.9"),
        ("FLUX.2", "transformer_blocks", 8, "transformer_blocks.7"),
        ("Chroma", "transformer_blocks", 19, "transformer_blocks.18"),
        ("Qwen-Image", "transformer_blocks", 60, "transformer_blocks.33"),
        ("Z-Image", "layers", 30, "layers.16"),
        ("HunyuanDiT", "blocks", 40, "blocks.22"),
        ("AuraFlow", "single_transformer_blocks", 32, "single_transformer_blocks.16"),
        ("Kandinsky 3", "up_blocks", 4, "up_blocks.2"),
        ("Krea 2", "transformer_blocks", 28, "transformer_blocks.15"),
        ("Kandinsky 5", "visual_transformer_blocks", 50, "visual_transformer_blocks.27"),
        ("Wan", "blocks", 40, "blocks.22"),
    ],
)
def test_default_taps_of_real_depths(family: str, blocks: str, depth: int, tap: str) -> None:
    denoiser = nn.Module()
    denoiser.add_module(blocks, nn.ModuleList(nn.Identity() for _ in range(depth)))
    assert row(family).default_tap(denoiser) == tap


@pytest.mark.parametrize(
    ("family", "lists", "tap"),
    [
        ("HiDream", {"double_stream_blocks": 16, "single_stream_blocks": 32}, "single_stream_blocks.10"),
        (
            "HunyuanImage 2.1",
            {"transformer_blocks": 20, "single_transformer_blocks": 40},
            "single_transformer_blocks.13",
        ),
        ("Ovis-Image", {"transformer_blocks": 6, "single_transformer_blocks": 27}, "single_transformer_blocks.12"),
        ("Bria", {"transformer_blocks": 4, "single_transformer_blocks": 1}, "transformer_blocks.2"),
    ],
)
def test_default_taps_where_blocks_are_in_two_lists(family: str, lists: dict[str, int], tap: str) -> None:
    denoiser = nn.Module()
    for blocks, depth in lists.items():
        denoiser.add_module(blocks, nn.ModuleList(nn.Identity() for _ in range(depth)))
    assert row(family).default_tap(denoiser) == tap


def test_a_layout_is_known_for_whole_blocks_only() -> None:
    assert row("SD3").layout("transformer_blocks.3").stream == 1
    assert row("SD3").layout("transformer_blocks.3.attn").stream is None
    assert row("FLUX.2").layout("single_transformer_blocks.3").image == "last"
    assert row("ERNIE-Image").layout("layers.3").rows == 1


@pytest.mark.parametrize(
    ("class_name", "keywords"),
    [
        ("StableDiffusionPipeline", {"prompt", "negative_prompt"}),
        ("StableDiffusionXLImg2ImgPipeline", {"prompt", "prompt_2", "negative_prompt", "negative_prompt_2"}),
        ("Flux2KleinPipeline", {"prompt"}),
        ("KandinskyV22Pipeline", set()),
    ],
)
def test_prompt_keywords(class_name: str, keywords: set[str]) -> None:
    pipeline = getattr(diffusers, class_name)
    assert set(prompt_keywords(pipeline.__new__(pipeline))) == keywords
