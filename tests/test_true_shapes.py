"""benchmarks/true_shapes.py: the shapes are the published ones, and a whole run of it at a tiny size."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_flux, tiny_sd

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import true_measures
import true_models
import true_shapes

TINY = true_models.Model("tiny", lambda device: tiny_sd(), 0, 16, 4, 4, 600.0, {"guidance_scale": 3.0}, torch.float32)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny operations in several threads wait for each other without end where the machine has other work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model", true_models.MODELS, ids=lambda model: model.name)
def test_denoisers_have_the_published_number_of_parameters(model):
    pipe = model.build("meta")  # nothing is computed and nothing takes memory
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    assert round(sum(p.numel() for p in denoiser.parameters()) / 1e6) == model.million
    assert denoiser.dtype == model.dtype
    assert model.pixels == denoiser.config.sample_size * 8 if "sample_size" in denoiser.config else model.pixels == 1024


@pytest.mark.parametrize(("build", "rounds"), [(tiny_sd, 2), (tiny_flux, 1)], ids=["guided U-Net", "transformer"])
def test_every_figure_is_measured(build, rounds):
    model = replace(TINY, build=lambda device: build())
    rows = list(true_measures.Measures(model, true_models.ready(build(), model, "cpu"), "cpu", rounds, 2).rows())
    by_name = {row["what"]: row for row in rows}
    assert len(by_name) == len(rows) == 13
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in rows)
    for what in ("5 -> 1, one prompt, over one call of five", "5 -> 1, 2 prompts in shared batches, over calls of 4"):
        assert by_name[what]["rounds"] == rounds
    waiting = by_name["bytes that five waiting candidates hold, over the denoiser's weights"]
    assert waiting["bytes"] > 0
    shares = by_name["share of a run outside of denoiser, decoder and text encoders: ours"]["parts"]
    assert {name.split(" of ")[0] for name in shares} == {"denoiser", "decoder", "text encoders"}
    assert sum(shares.values()) <= 1.001


def test_rows_without_time_say_so_and_the_others_stay():
    model = replace(TINY, seconds=-1.0)
    rows = list(true_measures.Measures(model, tiny_sd(), "cpu", 2, 2).rows())
    measured = [row for row in rows if row["ratio"] is not None]
    assert {row.get("why") for row in rows if row not in measured} == {"there was no time left; give more by --seconds"}
    assert len(measured) == 6  # parts of a step, and the bytes


def test_the_stopwatch_leaves_the_classes_as_they_were():
    pipe = tiny_sd()
    before = type(pipe.unet).forward, type(pipe.vae).decode, type(pipe.text_encoder).forward
    with true_measures.stopwatch(pipe, pipe.unet, iter(range(100)).__next__) as seconds:
        pipe("a", num_inference_steps=2, guidance_scale=3.0)
        assert type(pipe.unet).forward is not before[0]
    assert (type(pipe.unet).forward, type(pipe.vae).decode, type(pipe.text_encoder).forward) == before
    assert seconds == {"text encoders": 2, "denoiser of 2 rows": 2, "decoder": 1}


def test_a_run_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    broken = replace(TINY, name="broken", build=lambda device: tiny_sd().to("nowhere"))
    monkeypatch.setattr(true_shapes, "MODELS", (broken, TINY))
    monkeypatch.setattr(true_shapes, "ON_A_CPU", {"tiny": {"steps": 3}, "broken": {}})
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["true_shapes.py", "--repeats", "1", "--prompts", "1", "--out", str(out)])
    true_shapes.main()
    found = json.loads(out.read_text())
    assert found["machine"].keys() == {"device", "torch", "diffusers", "transformers", "probeselect", "date"}
    failed, tiny = found["models"]
    assert "nowhere" in failed["error"] and tiny["steps"] == 3 and len(tiny["rows"]) == 13
    printed = capsys.readouterr().out
    assert "| 5 -> 1, one prompt, over one call of five | - | " in printed


def test_on_a_gpu_all_models_fit_ten_minutes_and_the_smallest_is_first():
    models = true_shapes.chosen("cuda", None)
    assert [m.million for m in models] == sorted(m.million for m in models)
    assert sum(m.seconds for m in models) <= 520  # the rest is for building
    assert [m.name for m in true_shapes.chosen("cpu", None)] == ["SD 1.5"]
    assert true_shapes.chosen("cuda", ["SDXL"], steps=4, pixels=None)[0].steps == 4
