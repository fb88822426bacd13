"""The command line as a user meets it: files, exit codes, one-line errors; real pipelines saved as folders."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_clip, tiny_flux, tiny_sd, tiny_sd3, tiny_sdxl

from probeselect.cli import main
from probeselect.data.dataset import Dataset
from probeselect.data.sealed import verify


def run(*arguments: str, expect: int = 0, capsys=None, both: bool = False) -> str:
    """Run the command line in this process; returns stdout, stderr when it is meant to fail, or both."""
    import unittest.mock

    with unittest.mock.patch.object(sys, "argv", ["probeselect", *arguments]):
        try:
            main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
    captured = capsys.readouterr()
    assert code == expect, captured.err
    if both:
        return captured.out + captured.err
    return captured.err if expect else captured.out


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root, builders = tmp_path_factory.mktemp("models"), (tiny_sd, tiny_sdxl, tiny_sd3, tiny_flux)
    for build in builders:
        build().save_pretrained(root / build.__name__)
    return {build.__name__: root / build.__name__ for build in builders}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 32)])
@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_flux"])
def test_a_saved_pipeline_with_a_preview_scorer(folders, clip_folder, tmp_path, capsys, name, height, width, dtype):
    out = run(
        "generate", "a cat", "--model", str(folders[name]), "--scorer", f"preview:clip-b32={clip_folder}",
        "-n", "3", "--steps", "5", "--height", str(height), "--width", str(width), "--dtype", dtype,
        "--device", "cpu", "--evaluate", f"clip-b32={clip_folder}", "--out", str(tmp_path), "--json", capsys=capsys,
    )  # fmt: skip
    result = json.loads(out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    kept = [c for c in result["candidates"] if c["kept"]]
    assert len(kept) == 1 and result["cost"]["denoiser_rows"] == 5 + 2 * 1
    assert result["candidates"] == sorted(result["candidates"], key=lambda c: c["seed"])
    best = max(result["candidates"], key=lambda c: c["scores"][0]["score"])
    assert best["seed"] == kept[0]["seed"] and set(kept[0]["rewards"]) == {"clip-b32"}
    assert Image.open(tmp_path / kept[0]["image"]).size == (width, height)
    assert Image.open(tmp_path / "contact_sheet.png").width > 3 * 100
    assert all(c["image"] is None for c in result["candidates"] if not c["kept"])


def test_several_prompts_share_waves_and_get_a_folder_each(folders, tmp_path, capsys):
    arguments = ("--model", str(folders["tiny_sd"]), "--scorer", "random", "-n", "4", "-k", "2", "--steps", "8",
                 "--rungs", "0.25,0.5", "--policy", "halving", "--seed", "3")  # fmt: skip
    for out in (tmp_path / "one", tmp_path / "again"):
        run("generate", "a cat", "b dog", *arguments, "--out", str(out), capsys=capsys)
    one, again = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "again"))
    assert [entry["prompt"] for entry in one] == ["a cat", "b dog"]
    for entry, other in zip(one, again, strict=True):
        assert entry["candidates"] == other["candidates"]  # the same command gives the same
        for seed in entry["kept"]:
            folder = f"prompt-{one.index(entry):03d}"
            files = [tmp_path / name / folder / f"seed-{seed}.png" for name in ("one", "again")]
            assert files[0].read_bytes() == files[1].read_bytes()
    assert one[0]["cost"]["denoiser_rows"] == 4 * 2 + 2 * 2 + 2 * 4


BAD_USE = {
    "no candidates": (["-n", "0"], "n = 0"),
    "k of none": (["-k", "0"], "k = 0"),
    "k above n": (["-n", "2", "-k", "3"], "k = 3"),
    "rung of zero": (["--rungs", "0"], "rungs = 0.0"),
    "rung of one": (["--rungs", "1"], "rungs = 1.0"),
    "rung is NaN": (["--rungs", "nan"], "rungs = nan"),
    "rungs unsorted": (["--rungs", "0.4,0.2"], "0.4,0.2"),
    "rungs are words": (["--rungs", "early"], "early"),
    "no rungs": (["--rungs", ""], "rungs"),
    "one step": (["--steps", "1"], "--steps 1"),
    "rungs on one step": (["--rungs", "0.1,0.2", "--steps", "4"], "both fall on step 1 of 4"),
    "unknown policy": (["--policy", "best"], "best"),
    "unknown evaluator": (["--evaluate", "taste"], "taste"),
    "negative seed": (["--seed", "-1"], "seed -1"),
    "unknown option": (["--speed", "9"], "--speed"),
    "a word for a number": (["-n", "five"], "'-n'"),
}


def test_previews_can_be_left_out(folders, tmp_path, capsys):
    made = {}
    for flag in ("--previews", "--no-previews"):
        out = tmp_path / flag
        arguments = ("generate", "a cat", "--model", str(folders["tiny_sd"]), "--scorer", "random", "--steps", "4")
        run(*arguments, "-n", "2", "--rungs", "0.5", flag, "--out", str(out), capsys=capsys)
        sheet = Image.open(out / "contact_sheet.png")
        made[flag] = [(out / name).read_bytes() for name in os.listdir(out) if name.startswith("seed")], sheet
    with_them, without = made["--previews"], made["--no-previews"]
    assert with_them[0] == without[0] and with_them[1].size == without[1].size
    colours = [len(sheet.crop((0, 90, 200, 250)).convert("RGB").getcolors(100_000)) for _, sheet in made.values()]
    assert colours[0] > 50 > 40 > colours[1]


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use_is_refused_before_any_model_is_loaded(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("probeselect.backbones.loading.load_backbone", None)  # loading would fail
    arguments, said = BAD_USE[case]
    error = run("generate", "a cat", *arguments, "--out", str(tmp_path), expect=2, capsys=capsys)
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(("prompt", "said"), [("", "empty"), ("  ", "empty"), ("a\0b", "NUL"), ("a\udcffb", "UTF-8")])
def test_bad_prompts_are_refused(prompt, said, monkeypatch, capsys):
    monkeypatch.setattr("probeselect.backbones.loading.load_backbone", None)
    assert said in run("generate", prompt, expect=2, capsys=capsys)


def test_a_very_long_prompt_runs_and_says_that_it_is_cut(folders, tmp_path, monkeypatch, capsys):
    options = ["--model", str(folders["tiny_sd"]), "--scorer", "random", "-n", "2", "--steps", "3", "--rungs", "0.5"]
    for prompt, cut in (("cat " * 2500, True), ("cat", False)):
        monkeypatch.setattr("sys.argv", ["probeselect", "generate", prompt, *options, "--out", str(tmp_path)])
        main()
        assert ("is not read by it" in capsys.readouterr().err) == cut
        assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no/such folder"], "no/such folder"),
        (["--model", "."], "model_index.json"),
        (["--scorer", "no such probe"], "no such probe"),
        (["--scorer", "preview:taste"], "taste"),
        (["--dtype", "fp8"], "fp8"),
    ],
)
def test_what_does_not_exist_is_named(folders, arguments, said, tmp_path, capsys):
    given = arguments if "--model" in arguments else ["--model", str(folders["tiny_sd"]), *arguments]
    error = run("generate", "a cat", *given, "--out", str(tmp_path), expect=2, capsys=capsys)
    assert said in error and error.count("\n") == 1


def test_a_probe_for_another_backbone_is_refused(folders, tmp_path, capsys):
    error = run(
        "generate", "a cat", "--model", str(folders["tiny_sd3"]), "--scorer", "embedded", "--out", str(tmp_path),
        expect=2, capsys=capsys,
    )  # fmt: skip
    assert "SD3Transformer2DModel" in error


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "--out" in run("generate", "a cat", "--out", str(tmp_path / "file"), expect=2, capsys=capsys)


def test_prompts_prints_the_split_that_was_asked_for(capsys):
    from probeselect.embedded.captions import split_of

    seen = {}
    for split in ("train", "val", "test"):
        lines = run("prompts", "--count", "40", "--split", split, capsys=capsys).splitlines()
        assert len(set(lines)) == 40 and {split_of(line) for line in lines} == {split}
        assert lines == run("prompts", "--count", "40", "--split", split, capsys=capsys).splitlines()
        seen[split] = set(lines)
    assert not seen["train"] & seen["test"]
    assert "--split" in run("prompts", "--split", "all", expect=2, capsys=capsys)


def test_info_of_a_folder(folders, capsys):
    fields = json.loads(run("info", str(folders["tiny_flux"]), "--json", capsys=capsys))
    assert fields["denoiser"] == "FluxTransformer2DModel" and fields["torch"] == torch.__version__


def test_help_does_not_wait_for_torch():
    code = "import sys; from probeselect import cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_prompt_that_the_evaluator_cannot_judge_is_refused_before_any_work(capsys, tmp_path, monkeypatch):
    from probeselect.select import sampler as select

    monkeypatch.setattr(select, "rollout", lambda *_, **__: pytest.fail("work was done"))
    for options in (["--scorer", "random", "--evaluate", "scene-check"], ["--scorer", "preview:scene-check"]):
        monkeypatch.setattr("sys.argv", ["probeselect", "generate", "a sofa", *options, "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2 and "names none of the nouns" in capsys.readouterr().err


@pytest.fixture
def prompt_file(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a dog\ntwo apples\na panda on blue\n")
    return path


COLLECT = ("-n", "2", "--steps", "3", "--rungs", "0.33", "--groups-per-shard", "2")


def test_collect_then_score_then_info(prompt_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "dataset"
    prompt_file.write_text(prompt_file.read_text() + "a dog\n")
    command = ["collect", "--prompts", str(prompt_file), "--out", str(out), *COLLECT, "--evaluators", "scene-check"]
    monkeypatch.setattr("sys.argv", ["probeselect", *command])
    main()
    said = capsys.readouterr()
    assert "3 of 3 prompts; candidates: 6 ok" in said.out and "line 4 repeats line 1" in said.err
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run(*command, capsys=capsys)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    summary = json.loads(run("score", str(out), "--evaluators", "scene-clip", "--json", capsys=capsys))
    assert set(summary["rewards"]) == {"scene-check", "scene-clip"} and summary["candidates"] == {"ok": 6}
    for path, data in before.items():
        if "summary" not in path.name:
            assert path.read_bytes() == data
    fields = json.loads(run("info", str(out), "--json", capsys=capsys))
    assert fields["prompts"] == "3 of 3, 2 candidates each" and "scene-clip (2 of 2 shards)" in fields["scores"]
    error = run(*command, "--guidance", "5", expect=2, capsys=capsys).splitlines()[-1]
    assert "dataset.json" in error and "arguments.guidance_scale was 3.0, now 5.0" in error


def test_collect_repairs_and_says_so(prompt_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "dataset"
    monkeypatch.setattr(
        "sys.argv", ["probeselect", "collect", "--prompts", str(prompt_file), "--out", str(out), *COLLECT]
    )
    main()
    file = out / "shards" / "shard-00001" / "tensors.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    capsys.readouterr()
    main()
    said = capsys.readouterr().err
    assert f"{file}: {len(data) - 1} bytes, {len(data)} were sealed; set aside and made again" in said
    assert file.read_bytes() == data


BAD_COLLECTIONS = {
    "no prompts file": (["--prompts", "nowhere.txt"], "nowhere.txt"),
    "no rungs": (["--rungs", ""], "rungs"),
    "no candidates": (["-n", "0"], "n = 0"),
    "a part too many": (["--part", "3/2"], "--part '3/2'"),
    "unknown engine": (["--engine", "spark"], "--engine 'spark'"),
    "unknown evaluator": (["--evaluators", "taste"], "taste"),
    "an evaluator without a name": (["--evaluators", "http://localhost:1/score"], "write NAME=http"),
    "unknown format": (["--image-format", "gif"], "gif"),
    "one step": (["--steps", "1"], "--steps 1"),
    "rungs on one step": (["--rungs", "0.1,0.2", "--steps", "4"], "both fall on step 1 of 4"),
    "out is a file": (["--out", __file__], "--out"),
}


@pytest.mark.parametrize("case", BAD_COLLECTIONS)
def test_a_bad_collection_is_refused_before_any_model_is_loaded(case, prompt_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("probeselect.backbones.loading.load_backbone", None)
    monkeypatch.setattr("probeselect.collect.job.load_backbone", None)
    arguments, said = BAD_COLLECTIONS[case]
    usual = ["--prompts", str(prompt_file), "--out", str(tmp_path / "out")]
    error = run("collect", *usual, *arguments, expect=2, capsys=capsys)
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a\n\xff\n", "line 2"), (b"a\nb\0c\n", "line 2"), (b"\n\n", "no prompt"), (b"", "no prompt")],
)
def test_a_bad_prompt_file_is_refused_by_line(content, said, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes(content)
    error = run("collect", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), expect=2,
                capsys=capsys)  # fmt: skip
    assert said in error and "prompts.txt" in error and error.count("\n") == 1


def test_a_full_disk_is_one_line(prompt_file, tmp_path, monkeypatch, capsys):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    error = run("collect", "--prompts", str(prompt_file), "--out", str(out), *COLLECT, expect=1, capsys=capsys)
    assert "No space left on device" in error and str(out) in error and error.count("\n") == 1


def is_free(dataset: Dataset, index: int) -> bool:
    with dataset.leases.taken(dataset.shard(index).name) as ours:
        return ours


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_collection_and_leaves_whole_shards(number, code, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"{count} {noun}" for count in ("two", "three") for noun in ("dogs", "cars", "mugs")))
    command = [sys.executable, "-m", "probeselect", "collect", "--prompts", str(prompts), "--out", str(out), "-n", "4",
               "--groups-per-shard", "1"]  # fmt: skip
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job would not hear it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 120
    while not (out / "shards" / "shard-00000").is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == code and "Traceback" not in process.stderr.read()
    dataset = Dataset(out)
    assert 0 in dataset.done() and len(dataset.done()) < 6
    for index in dataset.done():
        verify(dataset.shard(index))
    assert {path.name for path in (out / "shards").iterdir()} == {dataset.shard(i).name for i in dataset.done()}
    deadline = time.monotonic() + 10  # what the dead one has left is in nobody's way for long
    for index in range(dataset.shard_count):
        while not is_free(dataset, index):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_sheet_has_a_row_for_every_rung_that_somebody_reached():
    """The first candidate is stopped at the first rung, the second one is finished."""
    from PIL import Image

    from probeselect.select.contact_sheet import contact_sheet
    from probeselect.select.results import CandidateResult, Cost, Result, RungScore

    picture, scores = Image.new("RGB", (8, 8)), [RungScore(0.2, 4, 0.1), RungScore(0.4, 8, 0.2)]
    first = CandidateResult("p", 0, 4, scores=scores[:1])
    kept = CandidateResult("p", 1, 20, kept=True, image=picture, scores=scores)
    cost = Cost(24, 40, 1.0, 0.1, 2, 0)
    heights = [
        contact_sheet(Result("p", order, [kept], cost)).height for order in ([first, kept], [kept, first], [first])
    ]
    assert heights[0] == heights[1] > heights[2]
