"""`probeselect train`: a dataset becomes a probe; killed it goes on, on two ranks it is the same, leaks are named."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from accelerate import PartialState
from kill_harness import ended, forked, killed_putting
from PIL import Image
from safetensors.torch import load_file, save
from stub_config import dataset_config

from probeselect.cli import main
from probeselect.collect.score import score
from probeselect.core.errors import UsageError
from probeselect.core.options import Option
from probeselect.data.dataset import Dataset, pin
from probeselect.data.shards import OK, Content, encode_image, image_name, seeds_of, write_shard
from probeselect.probe import checks, train_job
from probeselect.probe.card import leak_line
from probeselect.probe.checks import verdict
from probeselect.probe.files import load_probe
from probeselect.probe.options import TrainOptions
from probeselect.probe.splits import part_of
from probeselect.probe.train_job import TrainRun, train

N, GROUPS, RUNGS = 4, 60, (0.2, 0.4)
OPTIONS = TrainOptions(("brightness",), val_share=0.2, width=16, epochs=3, ema_decay=0.9, rate=5e-3)


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


def planted(folder: Path, in_order: bool = False, previews: bool = False, count: int = GROUPS) -> Dataset:
    """Planted: the first channel of the map is the brightness of the picture, with noise; more so at a later rung.

    in_order: a prompt's candidates are sorted by their brightness. previews: pictures that are as bright, with noise.
    """
    about = {"n": N, "previews": previews, "rungs": RUNGS, "groups_per_shard": 8}
    data = pin(folder, dataset_config(count, **about, arguments={"num_inference_steps": 20}))
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


def opened(dataset: Dataset, out: Path, options: TrainOptions = OPTIONS, rank: int = 0, world: int = 1) -> TrainRun:
    return TrainRun(dataset, out, options, {"brightness": Brightness()}, rank=rank, world=world)


def run(dataset: Dataset, out: Path, options: TrainOptions = OPTIONS, rank: int = 0, world: int = 1) -> TrainRun:
    training = opened(dataset, out, options, rank, world)
    list(training.epochs())
    return training


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def test_a_probe_is_trained_and_says_how_good_it_is(dataset, tmp_path):
    """By the one call from Python: its report, the card and the options beside the weights."""
    out = tmp_path / "probe"
    report = train(dataset.folder, out, OPTIONS, device="cpu", evaluators={"brightness": Brightness()})
    assert set(report.figures) == {"val", "test"} and report.epochs == 3
    for rows in report.figures.values():
        late = next(row for row in rows if row.rung == 0.4)
        low, high = late.spearman_interval
        assert late.spearman > 0.7 and low <= late.spearman <= high
    assert [leak.leak for leak in report.leaks] == [False, False]
    config = load_probe(out).config
    assert config.taps == ("tap", "x0") and config.tap_channels == (9, 2) and config.heads[0].kind == "features"
    text = (out / "README.md").read_text()
    assert (
        "TrainOptions(evaluators=('brightness',), val_share=0.2, width=16, epochs=3, rate=0.005, ema_decay=0.9)" in text
    )
    assert "| brightness | 0.4 |" in text and "60" not in text.split("##")[0]
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(asdict(report)))
    used = replace(OPTIONS, taps=("tap", "x0"), rungs=(0.2, 0.4))
    assert config.training.options == used
    assert TrainOptions(**json.loads((out / "training" / "plan.json").read_text())["options"]) == used


def test_the_block_of_the_page_trains_a_probe(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs/training.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    planted(tmp_path / "data", count=24)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_job, "parse_evaluator", lambda text: (text, None))
    monkeypatch.setattr(train_job, "load_evaluator", lambda *_, **__: Brightness())
    exec(compile(block, "docs/training.md", "exec"), {})
    assert "spearman=" in capsys.readouterr().out
    assert load_probe(tmp_path / "my-probe").config.training.options.taps == ("x0",)


def test_a_new_option_is_written_in_one_place(dataset, tmp_path):
    """A field more tells two runs apart; test_options has its command line, and config.json holds the dataclass."""
    more = make_dataclass("More", [("shade", Annotated[float, Option("shade", "Losses")], 0.5)], bases=(TrainOptions,),
                          frozen=True)  # fmt: skip
    options = more(("brightness",), kind="scalar", val_share=0.2, epochs=1, shade=0.7)
    run(dataset, tmp_path, options)
    with pytest.raises(UsageError, match=r"another training \(options\.shade was 0\.7, now 0\.6\)"):
        opened(dataset, tmp_path, replace(options, shade=0.6))


@pytest.mark.parametrize("kind", ["features", "scalar"])
def test_kinds_taps_and_rungs(dataset, tmp_path, kind):
    training = run(dataset, tmp_path, replace(OPTIONS, kind=kind, taps=("tap",), rungs=(0.4,)))
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


# The files that a run puts in their places, in its order. A kill meets each when "half" of it is there, when the
# "whole" of it is there under another name, or when it is "named".
KILLS = [
    ("plan.json", "half"), ("plan.json", "named"),
    ("log.jsonl", "half"), ("log.jsonl", "named"),  # then the log is a line ahead of the state
    ("state.safetensors", "half"), ("state.safetensors", "whole"), ("state.safetensors", "named"),
    ("log.jsonl", "named"), ("state.safetensors", "half"), ("state.safetensors", "named"),  # the second epoch, the last
    ("README.md", "named"), ("model.safetensors", "half"), ("config.json", "half"), ("trained_on.txt", "half"),
    ("report.json", "half"),
]  # fmt: skip


def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path):
    """One run, killed at every file and gone on with, beside one that nobody disturbs."""
    data = planted(tmp_path / "dataset", count=24)
    options = replace(OPTIONS, epochs=2, taps=("tap",), rungs=(0.4,), width=8)

    def whole(out: Path) -> None:
        torch.set_num_threads(1)
        run(data, out, options).finish("x")

    assert ended(forked(lambda: whole(tmp_path / "reference"))) == 0
    killed = tmp_path / "killed"
    for name, moment in KILLS:
        assert killed_putting(name, moment, lambda: whole(killed)), f"{name} was never written"
    assert ended(forked(lambda: whole(killed))) == 0
    kept = [path.relative_to(killed) for path in killed.rglob("*") if path.is_file() and path.name != "report.json"]
    assert len(kept) == 7
    for path in kept:
        assert (killed / path).read_bytes() == (tmp_path / "reference" / path).read_bytes(), path
    assert [line["epoch"] for line in log_of(killed)] == [0, 1]


def test_a_finished_run_is_not_run_again(dataset, tmp_path):
    first = run(dataset, tmp_path)
    again = opened(dataset, tmp_path)
    assert list(again.epochs()) == [] and again.history == first.history
    assert all(torch.equal(v, first.probe.state_dict()[k]) for k, v in again.probe.state_dict().items())


def test_the_state_of_another_training_is_refused(dataset, tmp_path):
    run(dataset, tmp_path, replace(OPTIONS, epochs=1))
    with pytest.raises(UsageError, match=r"another training \(options\.rate was 0\.005, now 0\.001\); remove it"):
        opened(dataset, tmp_path, replace(OPTIONS, epochs=1, rate=1e-3))


def test_a_state_or_a_log_that_cannot_be_read_is_named_in_a_line(dataset, tmp_path):
    options, work = replace(OPTIONS, epochs=1), tmp_path / "training"
    run(dataset, tmp_path, options)
    state, log = (work / "state.safetensors").read_bytes(), (work / "log.jsonl").read_bytes()
    for wrong in (b"", state[:-5], state[:100], save({"progress": torch.zeros(4)}), save({"probe.a": torch.zeros(1)})):
        (work / "state.safetensors").write_bytes(wrong)
        with pytest.raises(UsageError, match=r"state\.safetensors: no training can go on from it") as caught:
            opened(dataset, tmp_path, options)
        assert "\n" not in str(caught.value)
    (work / "state.safetensors").write_bytes(state)
    (work / "log.jsonl").write_bytes(log.replace(b'"best":true', b'"best":1'))
    with pytest.raises(UsageError, match=r"log\.jsonl: line 1: best = 1: must be true or false"):
        opened(dataset, tmp_path, options)
    (work / "log.jsonl").unlink()
    with pytest.raises(UsageError, match=r"log\.jsonl: cannot be read"):
        opened(dataset, tmp_path, options)
    (work / "plan.json").unlink()
    with pytest.raises(UsageError, match="holds the state of another training"):
        opened(dataset, tmp_path, options)


def test_rewards_that_follow_the_order_of_the_candidates_are_named_a_leak(dataset, tmp_path):
    assert [leak.leak for leak in run(dataset, tmp_path / "probe")._leaks()] == [False, False]
    data = planted(tmp_path / "dataset", in_order=True)
    leaks = run(data, tmp_path / "sorted")._leaks()
    assert [(leak.check, leak.leak) for leak in leaks] == [("text only", True), ("shuffled", False)]
    assert "something leaks" in leak_line(leaks[0]) and "leaks" not in leak_line(leaks[1])


def test_a_probe_that_does_well_when_it_is_told_about_others_is_named_a_leak(dataset, tmp_path, monkeypatch):
    """Planted: shuffling that shuffles nothing, so that a probe with skill seems to need no pairing."""
    training = run(dataset, tmp_path)
    monkeypatch.setattr(checks, "shuffled_activations", lambda table: table)
    assert [leak.leak for leak in training._leaks()] == [False, True]


def test_the_preview_is_fused_where_it_was_judged(dataset, tmp_path):
    assert run(dataset, tmp_path / "probe", replace(OPTIONS, epochs=1)).finish("x").fusions == []
    data = planted(tmp_path / "dataset", previews=True)
    report = run(data, tmp_path / "fused", replace(OPTIONS, rungs=(0.4,))).finish("x")
    (fused,) = report.fusions
    assert fused.fused > max(fused.probe, fused.preview) - 0.02 and min(fused.weights) > 0
    (stored,) = load_probe(tmp_path / "fused").config.fusions
    assert (stored.probe, stored.preview) == fused.weights and (stored.evaluator, stored.rung) == ("brightness", 0.4)
    assert "brightness at 0.4: Spearman" in (tmp_path / "fused" / "README.md").read_text()


def test_a_constant_scorer_is_no_leak():
    assert not verdict(np.zeros(30), 4, "text only").leak
    assert verdict(np.full(30, 0.1) + np.linspace(-0.01, 0.01, 30), 4, "text only").leak
    assert not verdict(np.linspace(-0.5, -0.1, 30), 4, "shuffled").leak
    assert verdict(np.linspace(0.1, 0.5, 30), 4, "shuffled").leak


def test_what_the_dataset_lacks_is_named(dataset, tmp_path):
    with pytest.raises(UsageError, match="scored by taste"):
        opened(dataset, tmp_path, replace(OPTIONS, evaluators=("taste",)))
    with pytest.raises(UsageError, match="tap 'other' was not collected; collected were tap, x0"):
        opened(dataset, tmp_path, replace(OPTIONS, taps=("other",)))
    with pytest.raises(UsageError, match="its formula is needed"):
        TrainRun(dataset, tmp_path, OPTIONS, {})
    with pytest.raises(UsageError, match="nothing else trains the head brightness"):
        opened(dataset, tmp_path, replace(OPTIONS, kind="scalar", ranking_weight=0))


def test_without_a_name_every_evaluator_of_the_dataset_is_predicted(dataset, tmp_path):
    assert opened(dataset, tmp_path, replace(OPTIONS, evaluators=())).options.evaluators == ("brightness",)
    for path in dataset.folder.iterdir():
        if path.name != "scores":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UsageError, match="no evaluator has scored it"):
        opened(Dataset(tmp_path), tmp_path / "probe", replace(OPTIONS, evaluators=()))


def test_the_command_trains_a_scalar_probe_and_says_so(dataset, tmp_path, capsys, monkeypatch):
    out = tmp_path / "probe"
    command = ["probeselect", "train", str(dataset.folder), "--out", str(out), "--kind", "scalar", "--epochs", "2",
               "--device", "cpu", "--val-share", "0.2", "--json"]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    main()
    report = json.loads(capsys.readouterr().out)
    assert report["epochs"] == 2 and load_probe(out).config.default_head == "brightness"
    assert "probeselect train" in (out / "README.md").read_text()
    for wrong, says in [
        (["--ranking", "best"], "--ranking = 'best': must be 'listnet' or 'listwise'"),
        (["--val-share", "0.6", "--test-share", "0.4"], "must be below 1 together"),
        (["--device", "gpu"], "--device 'gpu': is not a device"),
        (["--rate", "0.1"], "options.rate was 0.002, now 0.1"),
    ]:
        monkeypatch.setattr("sys.argv", [*command, *wrong])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2 and says in capsys.readouterr().err


def test_two_launched_processes_train_what_one_does(dataset, tmp_path):
    """By gloo, each on half of every batch: the same probe, within the error of adding in another order.

    Forks with what `torchrun` and `accelerate launch` put into the environment; test_engines runs torchrun itself.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def rank(index: int) -> None:
        torch.set_num_threads(1)
        PartialState._reset_state()  # that of an earlier test
        os.environ.update(meeting, LOCAL_WORLD_SIZE="2", RANK=str(index), LOCAL_RANK=str(index))
        sys.argv = ["probeselect", "train", str(dataset.folder), "--out", str(tmp_path / "two"), "--kind", "scalar",
                    "--epochs", "2", "--device", "cpu", "--val-share", "0.2", "--width", "16"]  # fmt: skip
        with (tmp_path / f"said by {index}").open("w") as said, redirect_stdout(said):
            main()
        torch.distributed.destroy_process_group()

    pids = [forked(lambda i=i: rank(i)) for i in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    assert "is the probe" in (tmp_path / "said by 0").read_text() and not (tmp_path / "said by 1").read_text()
    options = TrainOptions(kind="scalar", epochs=2, val_share=0.2, width=16)
    train(dataset.folder, tmp_path / "one", options, device="cpu")
    one, two = (log_of(tmp_path / name)[-1] for name in ("one", "two"))
    assert one["spearman"] == pytest.approx(two["spearman"], abs=0.03)
    assert one["loss"] != two["loss"]  # of half a batch
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=0.02, rtol=0.05) for k in a)


def test_training_needs_no_diffusers():
    code = "import sys; import probeselect.probe.train_job; assert not {'diffusers', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
