"""The command line with pipelines of many kinds: given pictures, clips, what is missing, flagged pictures, notes."""

import inspect
import json
import logging
import re
import shlex
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_clips import durations
from tiny import tiny_clip, tiny_flux, tiny_sd, tiny_sdxl
from zoo.case import Case
from zoo.pictures import mask, picture

from probeselect.backbones import requirements
from probeselect.backbones.requirements import check_stills, class_of, makes_clips, missing, needs, takes
from probeselect.cli import main
from probeselect.commands.outcome import faults, no_reward
from probeselect.commands.pictures import open_picture
from probeselect.core.errors import UsageError
from probeselect.evaluators.table import load_evaluator
from probeselect.rollout import outputs
from probeselect.rollout.batches import Batches
from probeselect.select.results import CandidateResult, Cost, Result

ROOT = Path(__file__).parents[1]
ZOO = [path.stem for path in (ROOT / "tests" / "zoo").glob("*.py") if path.stem not in ("__init__", "case", "pictures")]
CASES = [case for name in sorted(ZOO) for case in getattr(import_module(f"zoo.{name}"), "CASES", ())]
FIVE = ("-n", "5", "-k", "1", "--rungs", "0.2", "--scorer", "random", "--steps", "5", "--device", "cpu")
SMALL = ("--height", "16", "--width", "16")


def zoo_case(module: str, name: str, note: str = "") -> Case:
    return next(case for case in import_module(f"zoo.{module}").CASES if case.name == name and note in case.note)


MODELS = {
    "img2img": ("stable_diffusion", "StableDiffusionImg2ImgPipeline", ""),
    "inpaint": ("stable_diffusion", "StableDiffusionInpaintPipeline", ""),
    "control": ("stable_diffusion", "StableDiffusionControlNetPipeline", ""),
    "two-controls": ("stable_diffusion", "StableDiffusionControlNetPipeline", "several"),
    "sd3-control": ("stable_diffusion_3", "StableDiffusion3ControlNetPipeline", ""),
    "variation": ("stable_diffusion", "StableDiffusionImageVariationPipeline", ""),
    "wan": ("video", "WanPipeline", "2.1"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with tiny pipelines, an evaluator and some pictures."""
    root = tmp_path_factory.mktemp("models")
    for folder, named in MODELS.items():
        zoo_case(*named).build().save_pretrained(root / folder)
    tiny_sd().save_pretrained(root / "text")
    tiny_clip(root / "clip")
    picture().save(root / "picture.png")
    picture(1).save(root / "control.png")
    mask().save(root / "mask.png")
    (root / "words.png").write_text("no picture")
    whole = (root / "picture.png").read_bytes()
    (root / "half.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def run(models, monkeypatch, capsys):
    """Run the command line in this process, in the folder of the models: returns its exit code, stdout and stderr."""
    monkeypatch.chdir(models)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["probeselect", *arguments])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def stock(folder: Path, seed: int, **arguments) -> np.ndarray:
    """The picture of a seed by the pipeline alone, [H, W, 3] of bytes."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    output = pipe("a cat", generator=torch.Generator("cpu").manual_seed(seed), **arguments)
    return np.asarray(output.images[0].convert("RGB"))


def kept_of(out: Path) -> dict:
    (kept,) = [c for c in json.loads((out / "result.json").read_text())["candidates"] if c["kept"]]
    return kept


WITH_PICTURES = {
    "img2img": ("--image picture.png --strength 0.6", {"image": "picture.png", "strength": 0.6}),
    "inpaint": (
        "--image picture.png --mask mask.png --height 16 --width 16",
        {"image": "picture.png", "mask_image": "mask.png", "height": 16, "width": 16},
    ),
    "control": ("--control-image control.png", {"image": "control.png"}),
    "two-controls": (
        "--control-image control.png --control-image picture.png",
        {"image": ["control.png", "picture.png"]},
    ),
}


@pytest.mark.parametrize("model", WITH_PICTURES)
def test_given_pictures_reach_the_pipeline(models, run, tmp_path, model):
    options, arguments = WITH_PICTURES[model]
    code, said, noted = run(
        "generate", "a cat", "--model", model, *options.split(), *FIVE, "--no-previews", "--out", str(tmp_path)
    )
    assert code == 0 and noted == "" and "kept" in said
    kept = kept_of(tmp_path)

    def opened(value):
        if isinstance(value, list):
            return [opened(each) for each in value]
        return Image.open(models / value).convert("L" if "mask" in value else "RGB") if ".png" in str(value) else value

    wanted = stock(
        models / model, kept["seed"], num_inference_steps=5, **{name: opened(v) for name, v in arguments.items()}
    )
    made = np.asarray(Image.open(tmp_path / kept["image"]).convert("RGB"))
    assert np.abs(made.astype(int) - wanted).max() <= 1  # and not the picture of a call without what was given


def test_wan_makes_five_clips_and_keeps_one(run, tmp_path):
    options = ("--model", "wan", "--frames", "9", "--fps", "8", *SMALL, *FIVE, "--out", str(tmp_path))
    code, said, _ = run("generate", "a cat", *options)
    kept = kept_of(tmp_path)
    assert code == 0 and kept["image"] == f"seed-{kept['seed']}.webp" and "stopped at step 1" in said
    shown = durations(tmp_path / kept["image"])
    assert sum(shown) == 9 * 125
    code, said, _ = run("generate", "a cat", *options, "--clip-format", "gif", "--json")
    assert code == 0 and (tmp_path / f"seed-{kept['seed']}.gif").is_file()
    assert json.loads(said)["cost"]["denoiser_rows"] == 9


def test_a_pipeline_without_a_prompt_keeps_it_for_evaluators(run, tmp_path):
    options = ("--model", "variation", "--image", "picture.png", *SMALL, *FIVE, "--out", str(tmp_path))
    code, _, _ = run("generate", "a cat", *options, "--evaluate", "clip-b32=clip")
    assert code == 0 and "clip-b32" in kept_of(tmp_path)["rewards"]


REFUSED = {
    "img2img": "needs a picture: give --image FILE (in Python: image=...)",
    "inpaint": "needs a picture and a mask: give --image FILE and --mask FILE (in Python: image=..., mask_image=...)",
    "inpaint --image picture.png": "needs a mask: give --mask FILE (in Python: mask_image=...)",
    "control": "needs a control picture: give --control-image FILE (in Python: image=...)",
    "control --image picture.png": "takes no picture; give it as --control-image",
    "sd3-control": "needs a control picture: give --control-image FILE (in Python: control_image=...)",
    "img2img --control-image control.png": "takes no control picture; give it as --image",
    "text --image picture.png": "takes no picture; leave out --image, or give the folder of an image-to-image pipeline",
    "text --mask mask.png": "takes no mask; leave out --mask, or give the folder of an inpainting pipeline",
    "text --strength 0.5": "takes no strength; leave out --strength",
    "text --frames 5": "--frames: StableDiffusionPipeline makes no clips; leave out --frames",
    "text --fps 5": "--fps: StableDiffusionPipeline makes no clips; leave out --fps",
    "text --clip-format gif": "--clip-format: StableDiffusionPipeline makes no clips",
    "wan --clip-format avi": "clip format 'avi'",
    "wan --record rec": "--record: clips cannot be collected yet, and WanPipeline makes clips",
    "wan --frames 0": "--frames 0: must be at least 1",
    "wan --fps 0": "--fps 0: must be at least 1",
    "img2img --image picture.png --record rec": "--record: runs with a given picture cannot be recorded yet",
    "img2img --image nowhere.png": "--image nowhere.png: there is no such file",
    "img2img --image clip": "--image clip: is a folder",
    "img2img --image words.png": "--image words.png: is not a picture",
    "img2img --image half.png": "--image half.png: cannot be read",
    "img2img --image picture.png --strength 0": "--strength 0: must be above 0 and at most 1",
    "img2img --image picture.png --strength 1.1": "--strength 1.1",
    "img2img --image picture.png --strength nan": "--strength nan",
    "text --steps 1": "--steps 1: a rung needs at least 2 steps",
    "text --steps 0 --policy all": "--steps 0: must be from 1",
    "text --evaluator-device nowhere": "--evaluator-device 'nowhere': is not a device",
    "text --device nowhere": "--device 'nowhere': is not a device",
    "text --evaluator-dtype fp8": "--evaluator-dtype 'fp8': is not one of fp32, bf16, fp16",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_one_line_before_any_model_is_loaded(run, monkeypatch, options):
    monkeypatch.setattr("probeselect.backbones.loading.load_backbone", None)  # loading would fail
    code, said, told = run("generate", "a cat", "--scorer", "random", "--model", *options.split())
    assert code == 2 and said == "" and told.count("\n") == 1 and REFUSED[options] in told


def test_a_device_that_is_not_there_is_one_line(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for option in ("--device", "--evaluator-device"):
        code, _, told = run("generate", "a cat", option, "cuda")
        assert code == 2 and told == f"probeselect: {option} cuda: torch finds no cuda device on this machine\n"


def test_mp4_without_its_packages_is_refused_before_loading(run, monkeypatch):
    monkeypatch.setattr("probeselect.backbones.loading.load_backbone", None)
    monkeypatch.setattr("probeselect.select.clips.find_spec", lambda name: None)
    code, _, told = run("generate", "a cat", "--model", "wan", "--clip-format", "mp4")
    assert code == 2 and "mp4: needs imageio and ffmpeg" in told


def test_a_control_picture_for_each_control_net(run):
    options = ("--model", "two-controls", "--control-image", "control.png", *FIVE)
    code, _, told = run("generate", "a cat", *options)
    assert code == 2 and told == "probeselect: --control-image: 1 given for 2 control nets\n"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("wan", "collect: clips cannot be collected yet, and WanPipeline makes clips"),
        ("img2img", "collect gives the pipeline nothing but prompts; StableDiffusionImg2ImgPipeline needs image"),
    ],
)
def test_collect_refuses_what_it_cannot_keep(run, monkeypatch, tmp_path, model, said):
    monkeypatch.setattr("probeselect.collect.job.load_backbone", None)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    out = tmp_path / "data"
    code, _, told = run("collect", "--model", model, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(out))
    assert code == 2 and told == f"probeselect: {said}\n" and not out.exists()


def test_a_class_that_is_found_out_by_loading_is_checked_then(run, monkeypatch):
    monkeypatch.setattr(requirements, "class_of", lambda model: None)  # as of a hub id that is not in the cache
    monkeypatch.setattr("probeselect.rollout.batches.Batches.to_rung", lambda *_, **__: pytest.fail("a step was made"))
    code, _, told = run("generate", "a cat", "--model", "inpaint", "--image", "picture.png", *FIVE)
    assert code == 2 and "StableDiffusionInpaintPipeline needs a mask" in told


def test_one_step_needs_no_rung_where_everyone_is_finished(run, tmp_path):
    options = ("--model", "text", "--steps", "1", "--policy", "all", "-n", "2", "-k", "2", "--scorer", "random")
    code, said, _ = run("generate", "a cat", *options, *SMALL, "--out", str(tmp_path))
    assert code == 0 and "2 of 2 denoiser rows" in said
    assert [c["scores"] for c in json.loads((tmp_path / "result.json").read_text())["candidates"]] == [[], []]


def test_notes_are_on_stderr_once_and_in_the_result(run, tmp_path):
    options = ("--model", "sd3-control", "--control-image", "control.png", *FIVE, "--no-previews")
    code, said, told = run("generate", "a cat", "a dog", *options, "--out", str(tmp_path), "--json")
    results, lines = json.loads(said), told.splitlines()
    assert (
        code == 0
        and lines
        and len(set(lines)) == len(lines)
        and all(line.startswith("probeselect: ") for line in lines)
    )
    assert "not reproducible by seed" in told
    for result in results:
        assert [f"probeselect: {note}" for note in result["notes"]] == lines
    assert not logging.getLogger("probeselect").handlers  # and the next command has its own


# ---- flagged pictures and rewards that are missing


def flag(monkeypatch, flagged: set[int]) -> None:
    """Flag the finished pictures of these seeds."""
    usual = Batches.finished

    def finished(self, candidates):
        for stage in usual(self, candidates):
            flags = [[outputs.NOT_FINITE] if c.seed in flagged else [] for c in stage.candidates]
            yield replace(stage, flags=flags)

    monkeypatch.setattr(Batches, "finished", finished)


def test_a_flagged_picture_is_told_of_and_another_kept(run, monkeypatch, tmp_path):
    options = ("--model", "text", *SMALL, *FIVE, "--out", str(tmp_path))
    code, said, told = run("generate", "a cat", *options)
    first = kept_of(tmp_path)["seed"]
    assert (code, told) == (0, "") and "flagged:" not in said
    flag(monkeypatch, {first})
    code, said, told = run("generate", "a cat", *options)
    assert code == 0 and kept_of(tmp_path)["seed"] != first
    assert told == f"probeselect: flagged pictures for 'a cat': seed {first} (not finite); others were kept instead\n"
    assert re.search(rf"seed {first} .*flagged: not finite", said)


def test_without_a_good_picture_the_command_fails_and_saves_what_there_is(run, monkeypatch, tmp_path):
    flag(monkeypatch, set(range(5)))
    code, _, told = run("generate", "a cat", "--model", "text", *SMALL, *FIVE, "--out", str(tmp_path))
    kept = kept_of(tmp_path)
    assert code == 1 and told == "probeselect: no good picture for 'a cat': not finite\n"
    assert (tmp_path / kept["image"]).is_file() and kept["flags"] == ["not finite"]


def result(flags: dict[int, list[str]], kept: set[int], rewards: tuple[float, ...] = ()) -> Result:
    candidates = [
        CandidateResult("p", seed, 5, seed in kept, flags=why, rewards={str(i): r for i, r in enumerate(rewards)})
        for seed, why in flags.items()
    ]
    return Result("p", candidates, [c for c in candidates if c.kept], Cost(9, 25, 1.0, 0.1, 5, 0))


def test_what_is_said_of_flagged_pictures():
    good, black = [], ["black"]
    assert faults([result({0: good, 1: good}, {0})]) == ([], False)
    assert faults([result({0: good, 1: black}, {0})]) == (
        ["flagged pictures for 'p': seed 1 (black); others were kept instead"],
        False,
    )
    assert faults([result({0: good, 1: black}, {0, 1})])[0] == [
        "flagged pictures for 'p': seed 1 (black); too few others were there to keep"
    ]
    lines, failed = faults([result({0: good}, {0}), result({0: black, 1: ["not finite"]}, {0, 1})])
    assert failed and lines == ["no good picture for 'p': black, not finite"]


@pytest.mark.parametrize(
    ("rewards", "none"), [((), True), ((float("nan"),), True), ((float("nan"), 0.5), False), ((0.0,), False)]
)
def test_no_reward(rewards, none):
    assert no_reward([result({0: []}, {0}, rewards)]) == none


def test_an_evaluator_that_says_nothing_fails_the_command(run, tmp_path):
    silent = tmp_path / "silent.py"
    silent.write_text(
        "import json, sys\nfor line in sys.stdin:\n"
        "    count = len(json.loads(line)['images'])\n    print(json.dumps({'rewards': [None] * count}), flush=True)\n"
    )
    judge = f"silent=exec:{sys.executable} {shlex.quote(str(silent))}"
    options = ("--model", "text", *SMALL, *FIVE, "--out", str(tmp_path / "out"), "--evaluate", judge)
    code, _, told = run("generate", "a cat", *options)
    assert code == 1 and told == "probeselect: Evaluator silent gave no reward to any picture.\n"
    assert (tmp_path / "out" / kept_of(tmp_path / "out")["image"]).is_file()


# ---- evaluators


def test_evaluators_get_their_device_and_precision(run, monkeypatch, tmp_path):
    seen = []

    def loaded(name, weights=None, **options):
        seen.append((name, str(options["device"]), options["dtype"]))
        return load_evaluator(name, weights, **options)

    monkeypatch.setattr("probeselect.evaluators.table.load_evaluator", loaded)
    monkeypatch.setattr("probeselect.scorers.context.load_evaluator", loaded)
    options = ("--model", "text", "-n", "2", "--steps", "4", *SMALL, "--scorer", "preview:clip-b32=clip")
    code, _, _ = run(
        "generate", "a cat", *options, "--evaluate", "clip-b16=clip", "--evaluator-device", "cpu:0",
        "--evaluator-dtype", "bf16", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0 and sorted(seen) == [("clip-b16", "cpu:0", torch.bfloat16), ("clip-b32", "cpu:0", torch.bfloat16)]
    seen.clear()
    run("generate", "a cat", *options, "--evaluate", "clip-b16=clip", "--out", str(tmp_path))
    assert sorted(seen) == [("clip-b16", "cpu", None), ("clip-b32", "cpu", None)]


def test_a_precision_is_for_models_of_transformers_only():
    judge = load_evaluator("scene-check", dtype=torch.bfloat16, batch_size=2)
    assert next(judge.detector.parameters()).dtype == torch.float32


# ---- opening pictures


def test_pictures_are_opened_upright_and_in_their_mode(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGBA", (4, 2), (255, 0, 0, 9)).save(tmp_path / "a.png", exif=exif)
    opened = open_picture(tmp_path / "a.png", "--image")
    assert opened.size == (2, 4) and opened.mode == "RGB" and opened.getpixel((0, 0)) == (255, 0, 0)
    assert open_picture(tmp_path / "a.png", "--mask", "L").mode == "L"


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 25600, 65535]], np.uint16)).save(tmp_path / "depth.png")
    opened = open_picture(tmp_path / "depth.png", "--control-image")
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


@pytest.mark.parametrize("most", [100, 200])  # Pillow only warns of the second
def test_a_picture_that_is_too_large_is_one_line(tmp_path, monkeypatch, most):
    Image.new("L", (20, 15)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(UsageError, match=r"--mask .*large.png: has more than 0 million pixels"):
        open_picture(tmp_path / "large.png", "--mask", "L")


# ---- what a class takes and needs

NOT_NEEDED = {  # given in a case's plainest call, though the stock class can be called without it
    "FluxKontextPipeline": {"image"},
    "Flux2KleinKVPipeline": {"image"},
    "WanVACEPipeline": {"video", "mask"},
}
ALSO = ("source_prompt", "token_indices", "control_mode", "hint")


def pictures_of(case: Case) -> set[str]:
    """Keywords of a case's plainest call that hold pictures, or something else that only this class has."""
    found = set()
    for name, value in case.arguments.items():
        items = value if isinstance(value, list) else [value]
        if name in ALSO or (items and all(isinstance(item, Image.Image | torch.Tensor) for item in items)):
            found.add(name)
    given_by_files = {"ip_adapter_image", "prior_token_ids"}  # need more than the class
    return found - given_by_files


KNOWN = [
    case
    for case in CASES
    if inspect.isclass(kind := getattr(diffusers, case.name, None)) and issubclass(kind, diffusers.DiffusionPipeline)
]
UNIQUE = list({(case.name, tuple(sorted(pictures_of(case)))): case for case in KNOWN}.values())


@pytest.mark.parametrize("case", UNIQUE, ids=lambda case: case.name)
def test_what_a_class_needs_is_what_its_plainest_call_is_given(case):
    kind, given = getattr(diffusers, case.name), set(case.arguments)
    assert missing(kind, given) is None
    needed = pictures_of(case) - NOT_NEEDED.get(case.name, set())
    if case.name.startswith("FluxControlNet"):
        needed -= {"control_mode"}  # of a union of control nets, which is known from its weights only
    assert set(needs(kind)) == needed
    for name in needed:
        line = missing(kind, given - {name})
        assert line and case.name in line and f"{name}=..." in line and "\n" not in line
    assert not needed or all(f"{name}=..." in missing(kind, given - needed) for name in needed)


AGREEING = [
    ("flux", "FluxFillPipeline"),
    ("flux", "FluxKontextPipeline"),
    ("flux", "Flux2KleinKVPipeline"),
    ("older", "PaintByExamplePipeline"),
    ("pixel_and_kandinsky", "IFInpaintingSuperResolutionPipeline"),
    ("qwen_and_z_image", "QwenImageControlNetInpaintPipeline"),
    ("stable_diffusion", "StableDiffusionControlNetInpaintPipeline"),
    ("stable_diffusion", "StableDiffusionAdapterPipeline"),
    ("stable_diffusion_more", "StableDiffusionDiffEditPipeline"),
    ("stable_diffusion_xl", "StableDiffusionXLControlNetUnionPipeline"),
    ("video_2", "CogVideoXVideoToVideoPipeline"),
]


@pytest.mark.parametrize(("module", "name"), AGREEING, ids=lambda value: value)
def test_the_stock_class_fails_without_what_is_missing_and_only_then(module, name):
    case = zoo_case(module, name)
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    for left_out in pictures_of(case):
        arguments = {key: value for key, value in case.arguments.items() if key != left_out}
        try:
            pipe(**({"prompt": "a cat"} if case.takes_prompt else {}), generator=torch.manual_seed(0), **arguments)
            works = True
        except Exception:  # of any type: most classes fail deep inside
            works = False
        assert works == (missing(type(pipe), arguments) is None), left_out


def test_which_keyword_an_option_becomes():
    def keyword(name: str) -> dict[str, str]:
        return {option.removeprefix("--"): word for option, word in takes(getattr(diffusers, name)).items()}

    assert keyword("StableDiffusionXLControlNetPipeline") == {"control-image": "image"}
    assert keyword("StableDiffusion3ControlNetPipeline") == {"control-image": "control_image"}
    assert keyword("StableDiffusion3ControlNetInpaintingPipeline")["mask"] == "control_mask"
    assert keyword("StableDiffusionXLControlNetInpaintPipeline") == {
        "image": "image", "mask": "mask_image", "control-image": "control_image", "strength": "strength",
    }  # fmt: skip
    assert keyword("LattePipeline") == {"frames": "video_length"}
    assert keyword("LTXImageToVideoPipeline") == {"image": "image", "frames": "num_frames", "fps": "frame_rate"}
    assert keyword("WanVACEPipeline") == {"frames": "num_frames"}  # its mask is one of a clip
    assert keyword("StableDiffusionPipeline") == {}


def test_which_classes_make_clips():
    clips = {case.name for case in KNOWN if makes_clips(getattr(diffusers, case.name))}
    in_videos = {case.name for name in ("video", "video_2", "video_3") for case in import_module(f"zoo.{name}").CASES}
    assert clips == in_videos
    check_stills(diffusers.FluxPipeline, "collect")
    with pytest.raises(UsageError, match="collect: clips cannot be collected yet, and WanVideoToVideoPipeline"):
        check_stills(diffusers.WanVideoToVideoPipeline, "collect")


def test_the_class_of_a_model_is_known_without_loading_it(models, tmp_path, monkeypatch):
    assert class_of("embedded") is diffusers.StableDiffusionPipeline
    assert class_of(models / "wan") is diffusers.WanPipeline
    assert class_of("owner/name") is None and class_of("no such folder") is None and class_of(tiny_sd()) is None
    cached = tmp_path / "model_index.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(cached))
    for content, found in (
        ('{"_class_name": "FluxPipeline"}', diffusers.FluxPipeline),
        ('{"_class_name": ["pipeline", "Mine"]}', None),
        ('{"_class_name": "NoSuchPipeline"}', None),
        ('{"_class_name": "AutoencoderKL"}', None),
        ("[]", None),
        ("{", None),
    ):
        cached.write_text(content)
        assert class_of("owner/name") is found


# ---- what the documents say

SMALLER = {
    '.to("cuda")': "",
    "preview:pickscore": "preview:clip-b32=clip",
    "preview:clip-b32 ": "preview:clip-b32=clip ",
    "--height 480 --width 832 --steps 50": "--height 16 --width 16 --steps 5",
    "height=1024, width=1024": "height=16, width=16",
    "--frames 33": "--frames 9",
    "INPAINT_FOLDER": "my-inpaint",
}


def blocks(page: Path, language: str) -> list[str]:
    """The examples of a page, with small models, sizes and evaluators."""
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    for old, new in SMALLER.items():
        found = [block.replace(old, new).replace("preview:clip-b32\n", "preview:clip-b32=clip\n") for block in found]
    return found


def test_the_examples_of_the_page_on_pipelines_run(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where a folder has the name of a model on the hub, it is taken
    tiny_sdxl().save_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    tiny_flux().save_pretrained("black-forest-labs/FLUX.1-dev")
    (tmp_path / "Wan-AI").mkdir()
    (tmp_path / "Wan-AI" / "Wan2.1-T2V-1.3B-Diffusers").symlink_to(models / "wan")
    (tmp_path / "clip").symlink_to(models / "clip")
    picture().save("photo.png")
    mask().save("mask.png")
    page = ROOT / "docs" / "pipelines.md"
    python = blocks(page, "python")
    assert len(python) == 4
    for block in python:
        exec(compile(block, str(page), "exec"), {})
    assert (tmp_path / "castle.png").is_file() and capsys.readouterr().out.splitlines()[-1] == "1 0.4"
    readme = [block for block in blocks(ROOT / "README.md", "sh") if "--mask" in block]
    commands = [line for block in (*blocks(page, "sh"), *readme) for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        main()
    assert (tmp_path / "probeselect-out" / "result.json").is_file()


def test_the_page_on_pipelines_names_options_and_arguments_that_are_there():
    page = (ROOT / "docs" / "pipelines.md").read_text()
    help_of = (ROOT / "src/probeselect/commands/generate.py").read_text()
    for option in set(re.findall(r"--([a-z][a-z-]+)", page)):
        assert re.search(rf"^    {option.replace('-', '_')}: ", help_of, re.MULTILINE), option
    assert len(page.splitlines()) <= 150
