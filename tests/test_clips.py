"""Clips and pictures of any output type as files: result.json, what lies beside it, and the contact sheet."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from probeselect.core.errors import UsageError
from probeselect.evaluators.pictures import to_pil
from probeselect.select import clips as clips_module
from probeselect.select.clips import clip_name, save_clip
from probeselect.select.contact_sheet import CELL, FADED, FRAMES, PAPER, WRONG, contact_sheet
from probeselect.select.result_file import write_results
from probeselect.select.results import CandidateResult, Cost, Result, RungScore

COLOURS = torch.eye(3)  # red, green, blue
ABOUT = {"model": "m", "scorer": "s", "policy": "topk"}


def clip(count: int = 9, width: int = 32, height: int = 16) -> torch.Tensor:
    """[F, 3, H, W]: red first, green in the middle, blue last, greys between that all differ."""
    frames = torch.linspace(0.1, 0.8, count).view(-1, 1, 1, 1).repeat(1, 3, height, width)
    for place, colour in zip((0, count // 2, count - 1), COLOURS, strict=True):
        frames[place] = colour.view(3, 1, 1)
    return frames


def result_of(*candidates: CandidateResult, notes: tuple[str, ...] = (), **cost) -> Result:
    cost = Cost(**{"denoiser_rows": 9, "denoiser_rows_all": 20, "seconds": 1.0, "seconds_scoring": 0.1} | cost,
                largest_wave=2, wave_halvings=0)  # fmt: skip
    return Result("a prompt", list(candidates), [c for c in candidates if c.kept], cost, notes=list(notes), about=ABOUT)


def finished(seed: int, image, kept: bool = True, **more) -> CandidateResult:
    return CandidateResult("a prompt", seed, 10, kept, image, [RungScore(0.2, 2, 0.5)], **more)


def colours_in(sheet: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in sheet.getcolors(1 << 24)}


def durations(path) -> list[int]:
    """Of the frames of a clip, in ms."""
    with Image.open(path) as saved:
        found = []
        for i in range(saved.n_frames):
            saved.seek(i)
            saved.load()
            found.append(saved.info["duration"])
    return found


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_a_saved_clip_plays_all_frames_at_its_speed_for_ever(kind, tmp_path):
    save_clip(clip(), tmp_path / f"clip.{kind}", fps=10)
    with Image.open(tmp_path / f"clip.{kind}") as saved:
        assert saved.info["loop"] == 0 and saved.size == (32, 16) and saved.n_frames == 9
        first = np.asarray(saved.convert("RGB"))
        saved.seek(8)
        last = np.asarray(saved.convert("RGB"))
    assert sum(durations(tmp_path / f"clip.{kind}")) == 900
    assert np.abs(first - np.array([255, 0, 0.0])).max() < 16 and np.abs(last - np.array([0, 0, 255.0])).max() < 16


def test_the_frames_of_a_webp_do_not_drift(tmp_path):
    save_clip(clip(81), tmp_path / "clip.webp")
    assert sum(durations(tmp_path / "clip.webp")) == round(1000 * 81 / 16)


def test_a_clip_of_one_frame_and_pil_frames(tmp_path):
    save_clip(clip(1), tmp_path / "one.webp")
    save_clip(to_pil(clip()), tmp_path / "pil.webp")
    save_clip(clip(), tmp_path / "pt.webp")
    assert Image.open(tmp_path / "one.webp").size == (32, 16)
    assert (tmp_path / "pil.webp").read_bytes() == (tmp_path / "pt.webp").read_bytes()


def test_a_format_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(clips_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^mp4: needs imageio and ffmpeg; install probeselect\[video\], or save .*$"):
        save_clip(clip(), tmp_path / "clip.mp4")
    with pytest.raises(UsageError, match="clip format 'avi': unknown, need one of webp, mp4, gif"):
        save_clip(clip(), tmp_path / "clip.avi")
    with pytest.raises(UsageError, match="fps: got 0, must be at least 1"):
        save_clip(clip(), tmp_path / "clip.webp", fps=0)
    with pytest.raises(UsageError, match="mp4: needs"):
        write_results([result_of(finished(7, Image.new("RGB", (4, 4))))], tmp_path / "out", clips="mp4")
    assert not list(tmp_path.iterdir())  # it says so before it writes anything


def test_an_mp4_is_written_by_diffusers(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(clips_module, "find_spec", lambda name: object())
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda *args, **kwargs: calls.append((args, kwargs)))
    save_clip(clip(), tmp_path / "clip.mp4", fps=24)
    ((frames, path), options) = calls[0]
    assert len(frames) == 9 and path == str(tmp_path / "clip.mp4") and options["fps"] == 24


def test_clips_are_saved_by_seed_and_named_in_the_result(tmp_path):
    stopped = CandidateResult("a prompt", 8, 2, scores=[RungScore(0.2, 2, 0.1, clip())])
    result = result_of(finished(7, clip()), stopped, finished(9, list(to_pil(clip())), kept=False))
    content = write_results([result], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contact_sheet.png", "result.json", "seed-7.webp"]
    assert [c["image"] for c in content["candidates"]] == [clip_name(7), None, None]
    assert Image.open(tmp_path / "seed-7.webp").n_frames == 9
    gif = write_results([result], tmp_path / "gif", clips="gif", fps=10)
    assert gif["candidates"][0]["image"] == "seed-7.gif"
    assert sum(durations(tmp_path / "gif" / "seed-7.gif")) == 900


@pytest.mark.parametrize("still", [clip()[0], clip()[0].movedim(0, -1).numpy(), to_pil(clip()[0])], ids=type)
def test_stills_of_any_output_type_are_saved_as_png(still, tmp_path):
    content = write_results([result_of(finished(7, still))] * 2, tmp_path)
    assert content[1]["candidates"][0]["image"] == "prompt-001/seed-7.png"
    with Image.open(tmp_path / "prompt-001" / "seed-7.png") as saved:
        assert saved.format == "PNG" and saved.getcolors() == [(32 * 16, (255, 0, 0))]


def test_flags_notes_and_where_the_work_went(tmp_path):
    bad = finished(8, torch.full((3, 16, 32), torch.nan), kept=False, flags=["not finite"])
    cost = {"rows_by_module": {"transformer": 12, "transformer_2": 8}, "restarted": 1}
    result = result_of(finished(7, clip()[0]), bad, notes=("replay did not fit; seed 7 ran again",), **cost)
    write_results([result], tmp_path)
    content = json.loads((tmp_path / "result.json").read_text())
    assert [c.get("flags") for c in content["candidates"]] == [None, ["not finite"]]
    assert {key: content["cost"][key] for key in cost} == cost
    assert content["notes"] == ["replay did not fit; seed 7 ran again"]
    plain = write_results([result_of(finished(7, clip()[0]))], tmp_path / "plain")
    assert "notes" not in plain and plain["cost"]["restarted"] == 0 and plain["cost"]["rows_by_module"] == {}


@pytest.mark.parametrize("kept", [True, False])
def test_a_sheet_says_in_words_what_is_wrong_with_a_finished_picture(kept):
    good, bad = ([finished(7, clip()[0], kept, flags=flags)] for flags in ([], ["safety checker"]))
    assert WRONG in colours_in(contact_sheet(result_of(*bad))) and WRONG not in colours_in(
        contact_sheet(result_of(*good))
    )


@pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 32), (16, 16)])
def test_the_cell_of_a_clip_shows_its_first_middle_and_last_frame(width, height):
    sheet = contact_sheet(result_of(finished(7, clip(9, width, height))))
    pixels = np.asarray(sheet)
    found = [np.argwhere((pixels == 255 * colour.int().numpy()).all(-1)) for colour in COLOURS]
    sizes = [tuple(np.ptp(places, 0) + 1) for places in found]
    assert sizes == [(CELL * height // max(width, height), CELL * width // max(width, height))] * FRAMES
    corners = np.array([places.min(0) for places in found])
    along = 0 if width >= height else 1  # below each other, or side by side
    assert (np.diff(corners[:, along]) > 0).all() and (np.diff(corners[:, 1 - along]) == 0).all()


def test_a_clip_takes_the_room_of_its_frames_and_a_still_that_of_one():
    stills = contact_sheet(result_of(finished(7, clip()[0]), finished(8, clip()[0])))
    clips = contact_sheet(result_of(finished(7, clip()), finished(8, clip())))
    short = contact_sheet(result_of(finished(7, clip(1)), finished(8, clip(1))))
    assert clips.height > stills.height == short.height and clips.width == stills.width


def test_previews_of_clips_and_tensors_are_shown_and_faded_when_stopped():
    stopped = CandidateResult("a prompt", 8, 2, scores=[RungScore(0.2, 2, 0.1, clip().numpy().transpose(0, 2, 3, 1))])
    sheet = contact_sheet(result_of(stopped))
    faded = tuple(int(0.45 * part + 0.55 * paper) for part, paper in zip((0, 255, 0), PAPER, strict=True))
    assert any(max(abs(a - b) for a, b in zip(faded, colour, strict=True)) <= 2 for colour in colours_in(sheet))
    assert FADED in colours_in(sheet)


def test_a_sheet_of_stills_does_not_depend_on_the_output_type():
    kinds = (clip()[0], clip()[0].movedim(0, -1).numpy(), to_pil(clip()[0]))
    sheets = [contact_sheet(result_of(finished(7, kind))).tobytes() for kind in kinds]
    assert sheets[0] == sheets[1] == sheets[2]


def test_latents_are_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="latents cannot be shown, saved or evaluated"):
        write_results([result_of(finished(7, torch.zeros(16, 4, 4)))], tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_saving_stills_and_webp_does_not_need_diffusers(tmp_path):
    code = (
        f"import sys; sys.path[:] = {sys.path}; sys.modules['diffusers'] = None; import torch; "
        "from pathlib import Path; from probeselect.select.clips import save_clip; "
        f"save_clip(torch.rand(3, 3, 8, 8), Path({str(tmp_path / 'clip.webp')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "clip.webp").is_file(), done.stderr
