"""Collecting on a tiny pipeline: what a shard holds, what happens when things fail, and scoring afterwards."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from collected import ARGUMENTS, Redness, collected, maker_of, pinned, prompts_of, table_of
from diffusers import DPMSolverMultistepScheduler
from kill_harness import ended, forked, killed_again_and_again, tree_hash
from PIL import Image
from tiny import tiny_flux, tiny_sd, tiny_sd3, tiny_sdxl

from probeselect.backbones.loading import load_backbone
from probeselect.collect.loop import collect, parse_part
from probeselect.collect.maker import TRIES, CollectSettings, ShardMaker
from probeselect.collect.score import score, score_shard
from probeselect.collect.summary import write_summary
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.data.dataset import Dataset
from probeselect.data.sealed import Manifest, read_manifest
from probeselect.data.shards import FAILED, NOT_FINITE, OK, Content, Made, ScoresManifest, ShardManifest, seeds_of
from probeselect.probe.maps import project
from probeselect.select.sampler import SelectiveSampler

TEXTS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


@pytest.fixture(scope="module")
def plain(backbone, tmp_path_factory) -> Dataset:
    """Three prompts, previews, one evaluator; nothing goes wrong."""
    return collected(maker_of(backbone, previews=True), TEXTS, tmp_path_factory.mktemp("plain"), [Redness()])


def test_what_a_dataset_holds(plain):
    table = table_of(plain)
    assert table.prompts == TEXTS and plain.shard_count == 2 and plain.done() == [0, 1]
    shapes = {name: values.shape for name, values in table.tensors.items()}
    assert shapes["map/up_blocks.2.resnets.1/0.2"] == (3, 3, 8, 8, 8) and shapes["map/x0/0.4"] == (3, 3, 4, 8, 8)
    assert shapes["features/redness"] == (3, 3, 2) and shapes["prompt"][0] == 3
    assert {shape for name, shape in shapes.items() if name.startswith(("reward", "preview", "valid"))} == {(3, 3)}
    assert {f"preview/redness/{rung}" for rung in (0.2, 0.4)} < set(shapes)
    assert table.tensors["map/x0/0.4"].dtype == torch.float16 and table.tensors["valid"].all()


def test_rows_say_where_a_candidate_comes_from(plain):
    rows = [row for index in plain.done() for row in plain.rows(index).to_pylist()]
    assert [(row["prompt"], row["index"]) for row in rows] == [(text, i) for text in TEXTS for i in range(3)]
    assert [row["seed"] for row in rows] == [seed for text in TEXTS for seed in seeds_of("", text, 3)]
    first = rows[0]
    assert (first["steps"], first["guidance"], first["height"], first["status"]) == (5, 3.0, 16, OK)
    assert first["scheduler"] == type(load_backbone(tiny_sd()).pipe.scheduler).__name__
    assert len({row["image"] for row in rows}) == 9 and all(row["status/redness"] == OK for row in rows)


def test_the_picture_is_the_stock_pipelines_and_the_reward_is_of_the_picture(backbone, plain):
    row = plain.rows(0).to_pylist()[4]
    with Image.open(plain.shard(0) / row["image"]) as picture:
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        stock = backbone.pipe("b", generator=generator, **ARGUMENTS).images[0]
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(stock, dtype=int)).max() <= 1
        assert row["reward/redness"] == pytest.approx(Redness()([picture], ["b"]).item())


def test_one_group_is_read_without_the_others(plain):
    table = table_of(plain)
    for index in range(3):
        group = plain.group(index, ["map/x0/0.2", "seeds"])
        assert set(group) == {"map/x0/0.2", "seeds"}
        assert np.array_equal(group["map/x0/0.2"], table.tensors["map/x0/0.2"][index])
    with pytest.raises(UsageError, match=r"holds no 'map/x0/0.3'"):
        plain.group(0, ["map/x0/0.3"])


def test_a_rerun_changes_nothing_and_a_missing_shard_comes_back(backbone, plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "copy")
    before = tree_hash(folder)
    collected(maker_of(backbone, previews=True), TEXTS, folder, [Redness()])
    assert tree_hash(folder) == before
    shutil.rmtree(folder / "shards" / "shard-00001")
    collected(maker_of(backbone, previews=True), TEXTS, folder, [Redness()])
    assert tree_hash(folder) == before


def test_parts_in_folders_of_their_own_make_one_dataset(backbone, plain, tmp_path):
    prompts = prompts_of(*TEXTS)
    for part in (1, 0):
        dataset = pinned(maker_of(backbone, previews=True), prompts, tmp_path / str(part))
        assert [p.shard for p in collect(dataset, prompts, maker_of(backbone, previews=True), (part, 2))] == [part]
    shutil.copytree(tmp_path / "1" / "shards", tmp_path / "0" / "shards", dirs_exist_ok=True)
    assert tree_hash(tmp_path / "0" / "shards") == tree_hash(plain.folder / "shards")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "", "1/2/3"])
def test_a_part_that_cannot_be_is_named(text):
    with pytest.raises(UsageError, match="--part"):
        parse_part(text)


def test_seeds_depend_on_run_prompt_and_index_alone():
    assert seeds_of("", "a", 5)[:3] == seeds_of("", "a", 3)
    everything = [seed for run in ("", "x") for prompt in ("a", "b", "a1") for seed in seeds_of(run, prompt, 50)]
    assert len(set(everything)) == 300 and all(0 <= seed < 2**32 for seed in everything)


def test_seeds_of_a_group_differ_even_when_their_hashes_do_not(monkeypatch):
    monkeypatch.setattr("probeselect.data.shards.seed_of", lambda run, prompt, index, attempt=0: attempt)
    assert seeds_of("", "a", 4) == [0, 1, 2, 3]


def test_a_prompt_that_always_fails_is_given_up_and_its_neighbours_stay(backbone, tmp_path):
    maker, tries = maker_of(backbone), []
    usual = maker._make

    def poisoned(prompts):
        if any(prompt.text == "b" for prompt in prompts):
            tries.append(len(prompts))
            raise RuntimeError("the pipeline\nchokes")
        return usual(prompts)

    maker._make = poisoned
    dataset = collected(maker, TEXTS, tmp_path, [Redness()])
    assert tries == [2] + [1] * TRIES
    rows = dataset.rows(0).to_pylist()
    assert [row["status"] for row in rows] == [OK] * 3 + [FAILED] * 3
    assert rows[3]["error"] == "RuntimeError: the pipeline chokes" and rows[3]["image"] == ""
    assert [row["status/redness"] for row in rows] == [OK] * 3 + ["no picture"] * 3
    table = table_of(dataset)
    assert table.prompts == ["a", "c"] and table.tensors["valid"].all()
    assert not dataset.group(1, ["valid"])["valid"].any() and dataset.group(1, ["map/x0/0.2"])["map/x0/0.2"].any() == 0
    assert read_manifest(dataset.shard(0), ShardManifest).made.given_up == 1
    assert write_summary(dataset)["groups_given_up"] == 1


def test_a_prompt_that_fails_once_is_tried_again(backbone, tmp_path):
    maker, calls = maker_of(backbone), []
    usual = maker._make

    def flaky(prompts):
        calls.append(len(prompts))
        if len(calls) <= 2:
            raise RuntimeError("once")
        return usual(prompts)

    maker._make = flaky
    assert table_of(collected(maker, TEXTS[:2], tmp_path)).tensors["valid"].all()
    assert calls == [2, 1, 1, 1]


def test_when_no_group_can_be_made_the_run_stops(backbone, tmp_path):
    maker = maker_of(backbone)

    def broken(prompts):
        raise RuntimeError("no weights")

    maker._make = broken
    with pytest.raises(ProbeSelectError, match="no group of a shard can be made: RuntimeError: no weights"):
        collected(maker, TEXTS, tmp_path)
    assert Dataset(tmp_path).done() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_an_activation_that_is_not_finite_is_a_row_that_says_so(backbone, tmp_path, value):
    """1e6 is finite, but not in fp16."""
    taps = dict(backbone.denoiser.named_modules())["up_blocks.2.resnets.1"]

    def poison(module, arguments, output):
        output = output.clone()
        output[4] = value  # row 1 of the conditional half: 3 candidates, guidance
        return output

    handle = taps.register_forward_hook(poison)
    try:
        dataset = collected(maker_of(backbone, rungs=(0.2,)), ["a"], tmp_path, [Redness()])
    finally:
        handle.remove()
    assert [row["status"] for row in dataset.rows(0).to_pylist()] == [OK, NOT_FINITE, OK]
    assert table_of(dataset).tensors["valid"].tolist() == [[True, False, True]]


def test_an_evaluator_that_fails_on_one_picture_leaves_a_row(plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "copy")

    class Fussy(Redness):
        name = "fussy"

        def features(self, images):
            if any(image.tobytes() == hated for image in images):
                raise ValueError("not\nthis one")
            return super().features(images)

    with Image.open(plain.shard(0) / plain.rows(0)["image"].to_pylist()[2]) as picture:
        hated = picture.convert("RGB").tobytes()
    dataset = Dataset(folder)
    assert list(score(dataset, Fussy())) == [0, 1]
    rows = Dataset(folder).rows(0).to_pylist()
    assert [row["status/fussy"] for row in rows] == [OK, OK, FAILED, OK, OK, OK]
    assert rows[2]["error/fussy"] == "ValueError: not this one" and rows[2]["reward/fussy"] is None
    assert [row["reward/fussy"] for row in rows[:2]] == [row["reward/redness"] for row in rows[:2]]
    assert [row["reward/redness"] for row in rows] == [row["reward/redness"] for row in plain.rows(0).to_pylist()]


def test_an_evaluator_that_fails_on_everything_stops_the_run(plain, tmp_path):
    class Broken(Redness):
        name = "broken"

        def features(self, images):
            raise ConnectionError("nobody there")

    dataset = Dataset(shutil.copytree(plain.folder, tmp_path / "copy"))
    with pytest.raises(ProbeSelectError, match="evaluator broken: fails on every picture of a shard: ConnectionError"):
        list(score(dataset, Broken()))
    assert "broken" not in [path.parent.name for path in (dataset.folder / "scores").rglob("shard-*")]


def test_a_folder_of_scores_is_no_command(plain):
    """Names of evaluators can be commands; one that a foreign dataset brings along must not be run by `train`."""
    strange = plain.folder / "scores" / "exec:touch canary"
    strange.mkdir(parents=True)
    assert strange.name not in Dataset(plain.folder).evaluators
    strange.rmdir()


def test_an_evaluator_without_features_scores_too(plain, tmp_path):
    class Remote:
        name, has_features = "remote", False

        def __call__(self, images, prompts):
            return Redness()(images, prompts)

    dataset = Dataset(shutil.copytree(plain.folder, tmp_path / "copy"))
    assert list(score(dataset, Remote())) == [0, 1]
    table = table_of(Dataset(dataset.folder)).tensors
    assert np.array_equal(table["reward/remote"], table["reward/redness"]) and "features/remote" not in table


def test_scoring_later_touches_no_picture_and_no_activation(plain, tmp_path):
    class Greenness(Redness):
        name = "greenness"

        def score(self, features, prompts):
            return -super().score(features, prompts)

    dataset = Dataset(shutil.copytree(plain.folder, tmp_path / "copy"))
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in dataset.folder.rglob("*") if path.is_file()
    }
    assert list(score(dataset, Greenness())) == [0, 1]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    table = table_of(Dataset(dataset.folder)).tensors
    assert np.array_equal(table["reward/greenness"], -table["reward/redness"])
    assert np.array_equal(table["preview/greenness/0.2"], -table["preview/redness/0.2"])


def test_scores_of_a_picture_that_is_there_no_more_are_made_anew(backbone, plain, tmp_path):
    """A shard that was made again, with other pictures: its old scores do not belong to it."""
    folder = shutil.copytree(plain.folder, tmp_path / "copy")
    dataset, prompts = Dataset(folder), prompts_of(*TEXTS)
    shutil.rmtree(dataset.shard(1))
    other = maker_of(backbone, previews=True, run="other")
    list(collect(dataset, prompts, other))
    list(score(dataset, Redness()))
    assert (
        read_manifest(dataset.scores("redness", 1), ScoresManifest).of
        == read_manifest(dataset.shard(1), Manifest).sha256
    )
    assert dataset.rows(1)["reward/redness"] != plain.rows(1)["reward/redness"]


def test_other_weights_under_the_same_name_are_refused(plain, tmp_path):
    class Weighted(Redness):
        name = "weighted"

        def __init__(self, seed):
            torch.manual_seed(seed)
            self.model = torch.nn.Linear(2, 1)

    dataset = Dataset(shutil.copytree(plain.folder, tmp_path / "copy"))
    assert score_shard(dataset, Weighted(0), 0)
    assert list(score(dataset, Weighted(0))) == [0, 1]
    with pytest.raises(UsageError, match=r"the weights of weighted are now \w{16}; give them another name"):
        list(score(dataset, Weighted(1)))


def test_a_picture_that_has_changed_is_not_scored(plain, tmp_path):
    dataset = Dataset(shutil.copytree(plain.folder, tmp_path / "copy"))
    shutil.rmtree(dataset.folder / "scores" / "redness")
    picture = dataset.shard(0) / dataset.rows(0)["image"][0].as_py()
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    with pytest.raises(ProbeSelectError, match=f"{picture.name}: is not as it was collected"):
        list(score(dataset, Redness()))


def test_a_wave_that_does_not_fit_is_halved_and_that_is_noted(backbone, tmp_path):
    def tight(module, arguments):
        if len(arguments[0]) > 2 * 3:  # with guidance
            raise torch.OutOfMemoryError("too many")

    handle = backbone.denoiser.register_forward_pre_hook(tight)
    try:
        dataset = collected(maker_of(backbone, rungs=(0.4,)), ["a", "b", "c", "d"], tmp_path)
    finally:
        handle.remove()
    made = [read_manifest(dataset.shard(index), ShardManifest).made for index in (0, 1)]
    assert made[0] == Made(largest_wave=3, wave_halvings=1)
    assert made[1] == Made(largest_wave=3, wave_halvings=0)  # the next shard knows what fits


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 4}, "n was 3, now 4"),
        ({"rungs": (0.2,)}, r"rungs was \[0.2, 0.4\], now \[0.2\]"),
        ({"run": "x"}, 'run was "", now "x"'),
        ({"map_channels": 4}, "map_channels was 48, now 4"),
        ({"image_format": "webp"}, 'image_format was "png", now "webp"'),
    ],
)
def test_another_setting_is_refused_with_the_difference(backbone, plain, changes, says):
    with pytest.raises(UsageError, match=says):
        pinned(maker_of(backbone, previews=True, **changes), prompts_of(*TEXTS), plain.folder)


def test_other_prompts_weights_or_arguments_are_refused(backbone, plain):
    with pytest.raises(UsageError, match=r"prompts.sha256 was"):
        pinned(maker_of(backbone, previews=True), prompts_of("a", "b", "d"), plain.folder)
    maker = maker_of(backbone, previews=True)
    maker.arguments = {**ARGUMENTS, "num_inference_steps": 6}
    with pytest.raises(UsageError, match=r"arguments.num_inference_steps was 5, now 6"):
        pinned(maker, prompts_of(*TEXTS), plain.folder)
    retrained = load_backbone(tiny_sd())
    next(retrained.denoiser.parameters()).data.add_(1e-3)
    with pytest.raises(UsageError, match="weights was"):
        pinned(maker_of(retrained, previews=True), prompts_of(*TEXTS), plain.folder)


def test_a_scheduler_that_is_configured_with_an_infinity_is_collected(backbone, tmp_path):
    """JSON has none. DPM++ clips at minus infinity, which is to say that it does not."""
    other = load_backbone(tiny_sd())
    other.pipe.scheduler = DPMSolverMultistepScheduler.from_config(other.pipe.scheduler.config)
    dataset = pinned(maker_of(other), prompts_of("a"), tmp_path)
    assert dataset.config.scheduler["lambda_min_clipped"] == "-inf"
    with pytest.raises(UsageError, match=r'scheduler\.class was "DPMSolverMultistepScheduler", now'):
        pinned(maker_of(backbone), prompts_of("a"), tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"rungs": ()}, {"rungs": (0.4, 0.2)}, {"rungs": (1.0,)}, {"rungs": (float("nan"),)},
     {"map_side": 0}, {"batch_size": 0}, {"image_format": "gif"}, {"groups_per_shard": 0}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        CollectSettings(**wrong)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_picture_formats(backbone, plain, tmp_path, image_format):
    dataset = collected(maker_of(backbone, image_format=image_format), ["a"], tmp_path, [Redness()])
    name = dataset.rows(0)["image"][0].as_py()
    assert name.endswith(f".{image_format}")
    with Image.open(dataset.shard(0) / name) as picture:
        assert picture.format == image_format.upper()
        shown = np.asarray(picture.convert("RGB"), dtype=int)
    with Image.open(plain.shard(0) / plain.rows(0)["image"][0].as_py()) as picture:
        exact = np.asarray(picture, dtype=int)
    assert np.abs(shown - exact).max() <= (40 if image_format == "jpeg" else 0)


def test_ids_cannot_leave_the_folder(backbone, tmp_path):
    from probeselect.data.prompts import Prompt

    prompts = [Prompt("../../escape", "a"), Prompt("/etc/passwd", "b"), Prompt("c\0d", "c")]
    maker = maker_of(backbone)
    dataset = pinned(maker, prompts, tmp_path / "inside")
    list(collect(dataset, prompts, maker))
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [row["prompt_id"] for i in (0, 1) for row in dataset.rows(i).to_pylist()][::3] == [p.id for p in prompts]


def test_the_summary_counts_and_draws(plain):
    content = write_summary(plain)
    assert content == json.loads((plain.folder / "summary.json").read_text())
    assert content["candidates"] == {OK: 9} and content["groups"] == content["groups_planned"] == 3
    rewards = table_of(plain).tensors["reward/redness"].numpy()
    assert content["rewards"]["redness"]["mean"] == pytest.approx(rewards.mean(), abs=1e-5)
    within = np.sqrt(rewards.var(1, ddof=1).mean())
    assert content["rewards"]["redness"]["std_within_prompt"] == pytest.approx(within, abs=1e-5)
    with Image.open(plain.folder / "summary.png") as picture:
        assert picture.width > 600


def test_kills_on_a_real_pipeline_change_nothing(backbone, tmp_path):
    """As on the stub (test_sealed.py), with a real rollout: 20 kills on the embedded backbone."""
    embedded = load_backbone("embedded", device="cpu")
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0}
    settings = CollectSettings(n=2, groups_per_shard=1, rungs=(0.33,))
    maker = ShardMaker(embedded, embedded.taps, settings, arguments)
    texts = ["a dog", "two apples", "a panda on blue"]

    def task(folder: Path) -> None:
        torch.set_num_threads(1)  # a fork has none of its parent's threads
        collected(maker, texts, folder, [Redness()])

    assert ended(forked(lambda: task(tmp_path / "reference"))) == 0
    expected, kills, rng = tree_hash(tmp_path / "reference"), 0, random.Random(0)
    while kills < 20:
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        outcome = killed_again_and_again(folder, lambda folder=folder: task(folder), rng, 60, 0.7)
        assert outcome.hash == expected
        kills += outcome.kills


@pytest.mark.parametrize("build", [tiny_sdxl, tiny_sd3, tiny_flux])
def test_other_kinds_of_backbones_are_collected_by_their_defaults(build, tmp_path):
    """The family's tap and the x0-prediction, of the conditional rows, in candidate order."""
    other = load_backbone(build())
    dataset = collected(maker_of(other), ["a", "b"], tmp_path, [Redness()])
    table = table_of(dataset)
    assert table.tensors["valid"].all() and dataset.config.taps == (other.taps[0].name, "x0")
    live = SelectiveSampler(other, "random").features("b", seeds_of("", "b", 3), 0.4, **ARGUMENTS)
    stored = table.tensors[f"map/{other.taps[0].name}/0.4"][1].float()
    basis = torch.from_numpy(dataset.projection(other.taps[0].name))
    assert torch.allclose(stored, project(basis, live), atol=5e-3, rtol=5e-3)


def test_what_a_maker_gives_is_what_is_written(backbone, tmp_path):
    """The loop knows nothing of models: any function from prompts to content will do."""

    def make(prompts):
        rows = [{"prompt": prompt.text} for prompt in prompts for _ in range(3)]
        shape = len(prompts), 3
        return Content({"valid": np.ones(shape, dtype=bool), "seeds": np.zeros(shape, dtype=np.int64)}, rows)

    table = table_of(collected(maker_of(backbone), TEXTS, tmp_path, make=make))
    assert table.prompts == TEXTS and table.tensors["valid"].shape == (3, 3)


def test_the_documented_mirror_copies_whole_shards_and_only_new_ones(plain):
    """The code of docs/collecting.md, on a file system of fsspec's that is not a disk."""
    import fsspec

    text = (Path(__file__).parents[1] / "docs" / "collecting.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def mirror" in block)
    names: dict = {}
    exec(compile(code, "collecting.md", "exec"), names)
    bucket = fsspec.filesystem("memory")
    names["mirror"](str(plain.folder), "memory://bucket/run")
    for name in ("shards", "scores"):
        for path in (path for path in (plain.folder / name).rglob("*") if path.is_file()):
            assert bucket.cat(f"/bucket/run/{path.relative_to(plain.folder).as_posix()}") == path.read_bytes()
    bucket.pipe("/bucket/run/shards/shard-00000/rows.parquet", b"mine")
    names["mirror"](str(plain.folder), "memory://bucket/run")
    assert bucket.cat("/bucket/run/shards/shard-00000/rows.parquet") == b"mine"  # a whole shard is not copied again
