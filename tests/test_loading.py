"""Where a backbone may come from, and what is refused. Nothing here may reach the network or run a model's code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_flux, tiny_sd, tiny_sd3, tiny_sdxl
from torch import nn

from probeselect.backbones.loading import load_backbone
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.embedded import SHIPPED


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "sd"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture
def copy_of_saved(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    for source in saved.rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder


def refusal(kind: type[ProbeSelectError], model: Any, **arguments: Any) -> str:
    with pytest.raises(kind) as error:
        load_backbone(model, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pipeline_object_stays_as_it_is() -> None:
    pipe = tiny_sd()
    backbone = load_backbone(pipe)
    assert backbone.pipe is pipe and backbone.denoiser is pipe.unet
    assert [tap.name for tap in backbone.taps] == ["up_blocks.2.resnets.1"]
    assert pipe.unet.dtype == torch.float32
    assert [tap.name for tap in load_backbone(backbone, tap=["mid_block", "up_blocks[1]"]).taps] == [
        "mid_block", "up_blocks.1",
    ]  # fmt: skip


def test_a_pipeline_object_moves_only_when_asked_to() -> None:
    assert load_backbone(tiny_sd(), dtype="bf16").pipe.unet.dtype == torch.bfloat16
    assert load_backbone(tiny_sd(), dtype=torch.float64, device="cpu").pipe.vae.dtype == torch.float64


def test_a_folder_is_loaded_in_eval_mode_on_the_device_and_in_the_dtype_asked_for(saved: Path) -> None:
    backbone = load_backbone(str(saved), device="cpu")
    modules = [c for c in backbone.pipe.components.values() if isinstance(c, nn.Module)]
    assert len(modules) == 3 and not any(module.training for module in modules)
    assert {module.dtype for module in modules} == {torch.float32}
    assert load_backbone(saved, dtype="bf16", device="cpu").pipe.text_encoder.dtype == torch.bfloat16
    original = tiny_sd()
    assert backbone.describe() == load_backbone(original).describe()
    assert torch.equal(backbone.pipe.unet.conv_in.weight, original.unet.conv_in.weight)


def test_a_folder_that_was_saved_without_a_component_loads_without_it(tmp_path: Path) -> None:
    """As SD3 without its T5."""
    pipe = tiny_sd3()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "sd3")
    loaded = load_backbone(str(tmp_path / "sd3"), device="cpu")
    assert loaded.pipe.text_encoder_3 is None and loaded.family.name == "SD3"


def test_what_is_loaded_is_put_into_eval_mode(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tiny_sd()
    trained.vae.train()
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: trained)
    assert not load_backbone(saved, device="cpu").pipe.vae.training


def test_embedded_is_a_folder_of_the_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = SHIPPED["embedded"]
    monkeypatch.setitem(SHIPPED, "embedded", replace(shipped, pipeline=saved))
    assert load_backbone("embedded", device="cpu").name == "embedded"
    monkeypatch.setitem(SHIPPED, "embedded", replace(shipped, pipeline=saved / "absent"))
    assert "there is no" in refusal(UsageError, "embedded")


def test_describe_tells_architectures_apart_and_nothing_else() -> None:
    sd = load_backbone(tiny_sd()).describe()
    assert sd.denoiser == "UNet2DConditionModel"
    assert sd.latent_channels == 4 and load_backbone(tiny_flux()).describe().latent_channels == 16
    assert load_backbone(tiny_sdxl()).describe().architecture != sd.architecture
    same = tiny_sd()
    same.unet.register_to_config(_name_or_path="elsewhere", block_out_channels=[8, 8, 16], dropout=0.0)
    assert load_backbone(same).describe() == sd
    same.unet.register_to_config(cross_attention_dim=999)
    assert load_backbone(same).describe().architecture != sd.architecture


def test_the_digest_is_pinned() -> None:
    """Probes in the world carry it: a change here refuses them all."""
    assert load_backbone(tiny_sd()).describe().architecture == "b8e0071a89da13df"


def test_arguments_that_cannot_be_right() -> None:
    assert "not one of fp32, bf16, fp16" in refusal(UsageError, "embedded", dtype="int4")
    assert "int is not a name" in refusal(UsageError, 7)
    assert "has no module 'mid_blok'; near it: mid_block" in refusal(UsageError, tiny_sd(), tap="mid_blok")


def test_a_pipeline_in_train_mode_is_refused() -> None:
    pipe = tiny_sd()
    pipe.text_encoder.train()
    assert "call pipe.text_encoder.eval()" in refusal(UsageError, pipe)


@pytest.mark.parametrize("name", ["no/such/folder", "./absent", "a b", "nul\0", "x" * 5000 + "/" * 2])
def test_what_is_neither_folder_nor_hub_id(name: str) -> None:
    assert "neither a folder that exists nor a hub id" in refusal(UsageError, name)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    assert "model_index.json" in refusal(UsageError, tmp_path)
    (tmp_path / "file.safetensors").write_bytes(b"")
    assert "model_index.json" in refusal(UsageError, tmp_path / "file.safetensors")
    (tmp_path / "model_index.json").write_text("{ not json")
    assert "cannot load" in refusal(ProbeSelectError, tmp_path)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(ProbeSelectError, "nobody/nothing")
    assert message.startswith("model: cannot load 'nobody/nothing' from the hub (there is no folder of that name): ")


def test_pickles_are_never_loaded(copy_of_saved: Path) -> None:
    """Not even harmless ones, which the libraries would load."""
    for safe, pickled in [
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
        ("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
    ]:
        weights = load_file(copy_of_saved / safe)
        (copy_of_saved / safe).unlink()
        torch.save(weights, copy_of_saved / pickled)
        assert "cannot load" in refusal(ProbeSelectError, copy_of_saved, device="cpu")
        (copy_of_saved / pickled).unlink()
        save_file(weights, copy_of_saved / safe, metadata={"format": "pt"})
    assert load_backbone(copy_of_saved, device="cpu")


def test_code_that_comes_with_a_model_never_runs(copy_of_saved: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'touched')!r}, 'w')\nclass Mine: pass\n"
    (copy_of_saved / "pipeline.py").write_text(code)
    (copy_of_saved / "unet" / "mine.py").write_text(code)
    index = json.loads((copy_of_saved / "model_index.json").read_text())
    for field in ({"_class_name": ["pipeline", "Mine"]}, {"unet": ["mine", "Mine"]}):
        (copy_of_saved / "model_index.json").write_text(json.dumps({**index, **field}))
        assert "cannot load" in refusal(ProbeSelectError, copy_of_saved, device="cpu")
        assert not (tmp_path / "touched").exists()
