"""`probeselect train`: a dataset becomes a probe; killed it goes on, on two ranks it is the same, leaks are named."""

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_harness import ended, forked, killed_after
from PIL import Image
from safetensors.torch import load_file, save
from stub_config import dataset_config

from probeselect.cli import main
from probeselect.collect.score import score
from probeselect.core.errors import UsageError
from probeselect.data.dataset import Dataset, pin
from probeselect.data.shards import OK, Content, encode_image, image_name, seeds_of, write_shard
from probeselect.probe import checks
from probeselect.probe.card import leak_line
from probeselect.probe.checks import verdict
from probeselect.probe.files import load_probe
from probeselect.probe.splits import part_of
from probeselect.probe.train_job import TrainJob, TrainRun
from probeselect.probe.training import TrainingSettings

N, GROUPS, RUNGS = 4, 60, (0.2, 0.4)
SETTINGS = TrainingSettings(epochs=3, groups_per_batch=8, ema_decay=0.9, rate=5e-3)


class Brightness:
    """Rewards the picture's mean, in [0, 1]; its features are the means of its quarters."""

    name = "brightness"

    def features(self, images):
        return torch.stack([torch.from_numpy(np.array(i.resize((2, 2)).convert("L"))).flatten() / 255 for i in images])

    def score(self, features, prompts):
        return features.mean(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return planted(tmp_path_factory.mktemp("dataset"))


def planted(folder: Path, in_order: bool = False, previews: bool = False) -> Dataset:
    """Planted: the first channel of the map is the brightness of the picture, with noise; more so at a later rung.

    in_order: a prompt's candidates are sorted by their brightness. previews: pictures that are as bright, with noise.
    """
    about = {"n": N, "previews": previews, "rungs": RUNGS, "groups_per_shard": 8}
    data = pin(folder, dataset_config(GROUPS, **about, arguments={"num_inference_steps": 20}))
    draw = np.random.default_rng(0)
    for shard in range(data.shard_count):
        groups = data.groups_of(shard)
        light = draw.uniform(0, 255, (groups, N)).round()
        light = np.sort(light, 1) if in_order else light
        rows, images = [], {}
        seeds = [seeds_of("", f"{shard}-{g}", N) for g in range(groups)]
        for g in range(groups):
            prompt = f"prompt {shard * 8 + g}"
            for i in range(N):
                name = image_name(prompt, i, "png")
                images[name] = encode_image(Image.new("L", (4, 4), int(light[g, i])), "png")
                for rung in RUNGS if previews else ():
                    seen = int(np.clip(light[g, i] + draw.normal(0, 60), 0, 255))
                    images[image_name(prompt, i, "png", rung)] = encode_image(Image.new("L", (4, 4), seen), "png")
                row = {"prompt_id": prompt, "prompt": prompt, "index": i, "image": name, "status": OK}
                rows.append(row | {"seed": seeds[g][i]})
        tensors = {"seeds": np.array(seeds),
                   "valid": np.ones((groups, N), dtype=bool),
                   "prompt": draw.standard_normal((groups, 6)).astype(np.float16)}  # fmt: skip
        for rung in RUNGS:
            for tap, channels in (("tap", 5), ("x0", 2)):
                maps = draw.standard_normal((groups, N, channels, 4, 4))
                maps[:, :, 0] += (light / 128 - 1)[:, :, None, None] * (4 if tap == "tap" else 0) * rung
                tensors[f"map/{tap}/{rung:g}"] = maps.astype(np.float16)
        tensors |= {"projection/tap": np.eye(5, 9, dtype=np.float32), "projection/x0": np.eye(2, dtype=np.float32)}
        write_shard(data.shard(shard), Content(tensors, rows, images))
    list(score(data, Brightness()))
    return Dataset(folder)


@pytest.fixture
def job(dataset, tmp_path) -> TrainJob:
    return TrainJob(dataset.folder, tmp_path / "probe", ("brightness",), settings=SETTINGS, val_share=0.2)


def run(job: TrainJob, rank: int = 0, world: int = 1) -> TrainRun:
    training = TrainRun(job, {"brightness": Brightness()}, rank, world)
    list(training.epochs())
    return training


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def test_a_probe_is_trained_and_says_how_good_it_is(job):
    report = run(job).finish("probeselect train ...")
    assert set(report["figures"]) == {"val", "test"} and report["epochs"] == 3
    for rows in report["figures"].values():
        late = next(row for row in rows if row["rung"] == 0.4)
        low, high = late["spearman_interval"]
        assert late["spearman"] > 0.7 and low <= late["spearman"] <= high
    assert [leak["leak"] for leak in report["leaks"]] == [False, False]
    probe = load_probe(job.out)
    assert probe.config.taps == ("tap", "x0") and probe.config.tap_channels == (9, 2)
    assert probe.config.heads[0].kind == "features" and probe.config.training.split.test_share == 0.1
    text = (job.out / "README.md").read_text()
    assert "probeselect train ..." in text and "| brightness | 0.4 |" in text and "60" not in text.split("##")[0]
    assert json.loads((job.out / "report.json").read_text()) == report


@pytest.mark.parametrize("kind", ["features", "scalar"])
def test_kinds_taps_and_rungs(job, kind):
    training = run(replace(job, kind=kind, taps=("tap",), rungs=(0.4,)))
    config = training.probe.config
    assert (config.heads[0].kind, config.taps, config.rungs) == (kind, ("tap",), (0.4,))
    assert training.history[-1].spearman > 0.7


def test_no_prompt_is_in_two_parts_and_words_alone_decide():
    parts = {part_of(f"prompt {i}", 0.2, 0.1) for i in range(50)}
    assert parts == {"train", "val", "test"}
    assert all(part_of(f"A  Prompt {i} ", 0.2, 0.1) == part_of(f"a prompt {i}", 0.2, 0.1) for i in range(50))
    shares = [part_of(f"{i}", 0.2, 0.1) for i in range(5000)]
    assert shares.count("val") / 5000 == pytest.approx(0.2, abs=0.02)
    # A prompt that is tested on is so whatever share is validated with.
    assert all(part_of(f"{i}", 0.5, 0.1) == "test" for i in range(200) if part_of(f"{i}", 0.2, 0.1) == "test")


def test_killed_again_and_again_it_ends_with_the_same_weights(job, tmp_path):
    job = replace(job, settings=replace(SETTINGS, epochs=6))

    def whole(out: Path) -> None:
        torch.set_num_threads(1)
        run(replace(job, out=out)).finish("x")

    began = time.monotonic()
    assert ended(forked(lambda: whole(tmp_path / "reference"))) == 0
    took = time.monotonic() - began  # so that a slow machine is given more time, and no run is without an end
    expected = load_file(tmp_path / "reference" / "model.safetensors")
    kills, rng = 0, random.Random(0)
    while kills < 10:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        while kills < 10 and killed_after(rng.uniform(0.03, 1) * took, lambda: whole(tmp_path / "killed")):
            kills += 1
        assert ended(forked(lambda: whole(tmp_path / "killed"))) == 0
        found = load_file(tmp_path / "killed" / "model.safetensors")
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [line["epoch"] for line in log_of(tmp_path / "killed")] == list(range(6))
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_a_finished_run_is_not_run_again(job):
    first = run(job)
    again = TrainRun(job, {"brightness": Brightness()})
    assert list(again.epochs()) == [] and again.history == first.history
    assert all(torch.equal(v, first.probe.state_dict()[k]) for k, v in again.probe.state_dict().items())


def test_the_state_of_another_training_is_refused(job):
    run(job)
    with pytest.raises(UsageError, match="holds the state of another training"):
        TrainRun(replace(job, settings=replace(SETTINGS, rate=1e-3)), {"brightness": Brightness()})


def test_a_state_or_a_log_that_cannot_be_read_is_named_in_a_line(job):
    run(replace(job, settings=replace(SETTINGS, epochs=1)))
    job = replace(job, settings=replace(SETTINGS, epochs=1))
    work = job.out / "training"
    state, log = (work / "state.safetensors").read_bytes(), (work / "log.jsonl").read_bytes()
    for wrong in (b"", state[:-5], state[:100], save({"progress": torch.zeros(4)}), save({"probe.a": torch.zeros(1)})):
        (work / "state.safetensors").write_bytes(wrong)
        with pytest.raises(UsageError, match=r"state\.safetensors: no training can go on from it") as caught:
            TrainRun(job, {"brightness": Brightness()})
        assert "\n" not in str(caught.value)
    (work / "state.safetensors").write_bytes(state)
    (work / "log.jsonl").write_bytes(log.replace(b'"best":true', b'"best":1'))
    with pytest.raises(UsageError, match=r"log\.jsonl: line 1: best = 1: must be true or false"):
        TrainRun(job, {"brightness": Brightness()})
    (work / "log.jsonl").unlink()
    with pytest.raises(UsageError, match=r"log\.jsonl: cannot be read"):
        TrainRun(job, {"brightness": Brightness()})
    (work / "plan.json").unlink()
    with pytest.raises(UsageError, match="holds the state of another training"):
        TrainRun(job, {"brightness": Brightness()})


def test_two_ranks_train_what_one_does(job, tmp_path):
    """By gloo, each on half of every batch: the same probe, within the error of adding in another order."""
    job = replace(job, settings=replace(SETTINGS, epochs=2))

    def rank(index: int) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=index, world_size=2)
        training = run(replace(job, out=tmp_path / "two"), index, 2)
        if index == 0:
            training.finish("x")
        torch.distributed.destroy_process_group()

    pids = [forked(lambda i=i: rank(i)) for i in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    run(replace(job, out=tmp_path / "one")).finish("x")
    one, two = (log_of(tmp_path / name)[-1] for name in ("one", "two"))
    assert one["spearman"] == pytest.approx(two["spearman"], abs=0.03)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=0.02, rtol=0.05) for k in a)


def test_rewards_that_follow_the_order_of_the_candidates_are_named_a_leak(job, tmp_path):
    assert [leak["leak"] for leak in run(job)._leaks()] == [False, False]
    data = planted(tmp_path / "dataset", in_order=True)
    sorted_job = replace(job, folder=data.folder, out=tmp_path / "sorted")
    leaks = run(sorted_job)._leaks()
    assert [(leak["check"], leak["leak"]) for leak in leaks] == [("text only", True), ("shuffled", False)]
    assert "something leaks" in leak_line(leaks[0]) and "leaks" not in leak_line(leaks[1])


def test_a_probe_that_does_well_when_it_is_told_about_others_is_named_a_leak(job, monkeypatch):
    """Planted: shuffling that shuffles nothing, so that a probe with skill seems to need no pairing."""
    training = run(job)
    monkeypatch.setattr(checks, "shuffled_activations", lambda table: table)
    assert [leak["leak"] for leak in training._leaks()] == [False, True]


def test_the_preview_is_fused_where_it_was_judged(job, tmp_path):
    assert run(job).finish("x")["fusions"] == []
    data = planted(tmp_path / "dataset", previews=True)
    report = run(replace(job, folder=data.folder, out=tmp_path / "fused", rungs=(0.4,))).finish("x")
    (fused,) = report["fusions"]
    assert fused["fused"] > max(fused["probe"], fused["preview"]) - 0.02 and min(fused["weights"]) > 0
    (stored,) = load_probe(tmp_path / "fused").config.fusions
    assert [stored.probe, stored.preview] == fused["weights"] and (stored.evaluator, stored.rung) == ("brightness", 0.4)
    assert "brightness at 0.4: Spearman" in (tmp_path / "fused" / "README.md").read_text()


def test_a_constant_scorer_is_no_leak():
    assert not verdict(np.zeros(30), 4, "text only")["leak"]
    assert verdict(np.full(30, 0.1) + np.linspace(-0.01, 0.01, 30), 4, "text only")["leak"]
    assert not verdict(np.linspace(-0.5, -0.1, 30), 4, "shuffled")["leak"]
    assert verdict(np.linspace(0.1, 0.5, 30), 4, "shuffled")["leak"]


def test_what_the_dataset_lacks_is_named(job):
    with pytest.raises(UsageError, match="scored by taste"):
        TrainRun(replace(job, evaluators=("taste",)), {})
    with pytest.raises(UsageError, match="tap 'other' was not collected; collected were tap, x0"):
        TrainRun(replace(job, taps=("other",)), {"brightness": Brightness()})
    with pytest.raises(UsageError, match="its formula is needed"):
        TrainRun(job, {})


@pytest.mark.parametrize("wrong", [{"evaluators": ()}, {"val_share": 0.0}, {"val_share": 0.6, "test_share": 0.4}])
def test_jobs_that_cannot_be_are_refused(job, wrong):
    with pytest.raises(UsageError):
        replace(job, **wrong)


def test_the_command_trains_a_scalar_probe_and_says_so(dataset, tmp_path, capsys, monkeypatch):
    out = tmp_path / "probe"
    command = ["probeselect", "train", str(dataset.folder), "--out", str(out), "--kind", "scalar", "--epochs", "2",
               "--device", "cpu", "--val-share", "0.2", "--json"]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    main()
    report = json.loads(capsys.readouterr().out)
    assert report["epochs"] == 2 and load_probe(out).config.default_head == "brightness"
    assert "probeselect train" in (out / "README.md").read_text()
    monkeypatch.setattr("sys.argv", [*command[:-1], "--ranking", "best"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "ranked_by = 'best'" in capsys.readouterr().err


def test_two_launched_processes_train_together(dataset, tmp_path):
    """What `accelerate launch` does for GPUs, torchrun does for CPUs."""
    common = ["-m", "probeselect", "train", str(dataset.folder), "--kind", "scalar", "--epochs", "2", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for name, launch in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launch, *common, "--val-share", "0.2", "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is the probe") == 1
    one, two = (log_of(tmp_path / name)[-1] for name in ("one", "two"))
    assert one["spearman"] == pytest.approx(two["spearman"], abs=0.03) and one["loss"] != two["loss"]  # of half a batch


def test_training_needs_no_diffusers():
    code = "import sys; import probeselect.probe.train_job; assert not {'diffusers', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
