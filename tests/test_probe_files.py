"""What a probe folder may hold: anything else is refused in one line, quickly, and nothing in it is executed."""

import json
import pickle
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from msgspec import structs

from probeselect import Probe
from probeselect.core.candidates import candidates_of
from probeselect.core.description import Description
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.stage import Stage
from probeselect.probe.config import CONFIG, Head, ProbeConfig
from probeselect.probe.files import WEIGHTS, load_probe, save_probe
from probeselect.probe.scorer import ProbeScorer

CONFIGURATION = ProbeConfig(
    backbone="tiny",
    denoiser="UNet2DConditionModel",
    architecture="0123456789abcdef",
    latent_channels=4,
    taps=("up_blocks.2.resnets.1", "x0"),
    tap_channels=(64, 4),
    projected_channels=(8, 4),
    rungs=(0.2, 0.4),
    heads=(Head("scene-check", "features", (26, 16, 16)), Head("clip-b32", "scalar")),
    prompt_width=12,
    width=8,
)
FITS = Description(denoiser="UNet2DConditionModel", architecture="0123456789abcdef", latent_channels=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_probe(Probe(CONFIGURATION), tmp_path / "probe")
    return tmp_path / "probe"


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def stage_of(maps: dict[str, torch.Tensor], text: torch.Tensor | None) -> Stage:
    return Stage(0.2, 4, 20, candidates_of("a", len(maps["x0"])), maps, text)


def test_round_trip_gives_the_same_scores(folder):
    probe, again = Probe(CONFIGURATION).half().float(), load_probe(folder)
    probe.load_state_dict(again.state_dict())
    maps = {"up_blocks.2.resnets.1": torch.randn(3, 64, 16, 24), "x0": torch.randn(3, 4, 16, 24)}
    stage = stage_of(maps, torch.full((3, 12), 0.5))
    one, other = (ProbeScorer(p, "clip-b32")(stage) for p in (probe, again))
    assert torch.equal(one, other) and one.shape == (3,)
    assert again.config == CONFIGURATION


def test_the_hub_mixin_loads_and_saves_the_same_folder(folder, tmp_path):
    probe = Probe.from_pretrained(str(folder))
    probe.save_pretrained(tmp_path / "again")
    assert load_probe(tmp_path / "again").config == CONFIGURATION


def test_any_size_and_aspect_ratio(folder):
    probe = load_probe(folder)
    for size in ((16, 16), (32, 48), (40, 24)):
        maps = {"up_blocks.2.resnets.1": torch.randn(2, 64, *size), "x0": torch.randn(2, 4, *size)}
        encoded, condition = probe.encode(probe.project(maps), torch.full((2,), 0.2), torch.randn(2, 12))
        assert probe.predict(encoded, condition, "scene-check").shape == (2, 26, 16, 16)


@pytest.mark.parametrize("field", Description.__struct_fields__)
def test_another_backbone_is_refused_saying_what_differs(folder, field):
    probe = load_probe(folder)
    probe.check_fits(FITS)
    with pytest.raises(UsageError, match=field):
        probe.check_fits(structs.replace(FITS, **{field: "other"}))


def test_another_rung_is_refused(folder):
    probe = load_probe(folder)
    probe.check_rung(0.19)
    probe.check_rung(0.3)  # between two
    with pytest.raises(UsageError, match=r"from 0\.2 to 0\.4, not for 0\.5"):
        probe.check_rung(0.5)


class Canary:
    def __reduce__(self):
        return (Path("canary").touch, ())


@pytest.mark.parametrize("name", ["probe.pt", "probe.ckpt", "probe.bin", "probe/model.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5, "zip"])
def test_pickles_are_refused_and_not_executed(folder, tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if protocol == "zip":
        torch.save({"a": Canary()}, path)
    else:
        path.write_bytes(pickle.dumps(Canary(), protocol=protocol))
    with pytest.raises(UsageError, match=path.name):
        load_probe(folder if path.name == WEIGHTS else path)
    assert not Path("canary").exists()


def bombs(path: Path) -> dict[str, bytes]:
    header, data = header_of(path)
    first = next(name for name in header if name != "__metadata__")
    entry = header[first]

    def encoded(changed: dict) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data

    size = entry["data_offsets"][1]
    return {
        "empty": b"",
        "five bytes": b"\x05\0\0\0\0",
        "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "header of 2^40 bytes": struct.pack("<Q", 2**40) + b"{}",
        "not JSON": struct.pack("<Q", 4) + b"oops",
        "a list": struct.pack("<Q", 2) + b"[]",
        "deep JSON": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
        "100000 tensors": encoded(
            {str(i): {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(10**5)}
        ),
        "overlap": encoded({**header, "extra": entry}),
        "beyond the end": encoded({**header, first: {**entry, "data_offsets": [0, 2**62]}}),
        "negative": encoded({**header, first: {**entry, "data_offsets": [-size, 0]}}),
        "huge shape": encoded({**header, first: {**entry, "shape": [2**62, 2**62]}}),
        "odd dtype": encoded({**header, first: {**entry, "dtype": "F9"}}),
        "truncated": path.read_bytes()[:-3],
        "longer": path.read_bytes() + b"\0",
    }


BOMBS = ["empty", "five bytes", "header of 2^63 bytes", "header of 2^40 bytes", "not JSON", "a list", "deep JSON",
         "100000 tensors", "overlap", "beyond the end", "negative", "huge shape", "odd dtype", "truncated",
         "longer"]  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_header_bombs_are_refused_at_once(folder, kind):
    (folder / WEIGHTS).write_bytes(bombs(folder / WEIGHTS)[kind])
    began = time.perf_counter()
    with pytest.raises(UsageError, match=WEIGHTS) as caught:
        load_probe(folder)
    assert time.perf_counter() - began < 1 and "\n" not in str(caught.value)


def test_a_bomb_takes_little_memory(folder):
    """Refused within 50 MB beyond what the imports take."""
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**36) + b"{}")
    script = f"""
import resource, sys
from probeselect.probe.files import load_probe
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20,) * 2)
try:
    load_probe({str(folder)!r})
except ValueError as error:
    sys.exit(0 if "not possible" in str(error) else 3)
sys.exit(4)
"""
    assert hasattr(resource, "RLIMIT_AS")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("heads", []),
        ("heads", [{"evaluator": "a", "kind": "magic", "shape": []}]),
        ("taps", []),
        ("rungs", [1.5]),
        ("tap_channels", [10**9, 4]),
        ("width", "48"),
        ("surplus", 1),
        ("heads", [{"evaluator": "exec:touch canary", "kind": "features", "shape": [2]}]),
        ("heads", [{"evaluator": "http://localhost/", "kind": "scalar", "shape": []}]),
        ("heads", [{"evaluator": 5, "kind": "scalar", "shape": []}]),
        ("fusions", 5),
        ("fusions", [{"evaluator": "a"}]),
        ("fusions", [{"evaluator": "a", "rung": 0.2, "probe": "1", "preview": 1.0}]),
        ("fusions", [{"evaluator": "exec:touch canary", "rung": 0.2, "probe": 1.0, "preview": 1.0}]),
    ],
)
def test_bad_configurations_are_refused_naming_the_file(folder, field, value):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, field: value}))
    with pytest.raises(UsageError, match=CONFIG):
        load_probe(folder)


def test_missing_surplus_and_misshapen_tensors_are_named(folder):
    header, data = header_of(folder / WEIGHTS)
    name = next(n for n, e in header.items() if n != "__metadata__" and len(e["shape"]) == 2)
    with_header(folder / WEIGHTS, {("other" if n == name else n): e for n, e in header.items()}, data)
    with pytest.raises(UsageError, match=name):
        load_probe(folder)
    flipped = {**header, name: {**header[name], "shape": header[name]["shape"][::-1]}}
    with_header(folder / WEIGHTS, flipped, data)
    with pytest.raises(UsageError, match=name):
        load_probe(folder)


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG])
def test_an_incomplete_folder_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UsageError, match=missing):
        load_probe(folder)


def test_a_name_that_is_nothing(monkeypatch):
    with pytest.raises(UsageError, match="neither"):
        load_probe("no such probe")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ProbeSelectError, match="nobody/nothing"):
        load_probe("nobody/nothing")


def test_a_probe_that_reads_the_prompt_says_so(folder):
    probe = Probe(structs.replace(CONFIGURATION, prompt_width=12))
    maps = {"up_blocks.2.resnets.1": torch.randn(1, 64, 8, 8), "x0": torch.randn(1, 4, 8, 8)}
    with pytest.raises(UsageError, match="prompt"):
        ProbeScorer(probe, "clip-b32")(stage_of(maps, None))


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 65528},
        {"tap_channels": [65536, 65536], "projected_channels": [65536, 65536]},
        {"heads": [{"evaluator": "a", "kind": "features", "shape": [16777216 // 256, 256]}], "width": 65528},
    ],
)
def test_a_configuration_that_asks_for_more_than_the_weights_hold_takes_no_memory(folder, fields):
    """Planted: sizes whose tensors would take gigabytes, beside the weights of a small probe."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=rf"{WEIGHTS}: tensor .* {CONFIG}"):
        load_probe(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_loading_a_probe_leaves_the_random_state_alone(folder):
    before = torch.random.get_rng_state()
    probe = load_probe(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(value.device.type == "cpu" for value in probe.state_dict().values())
    assert all(parameter.requires_grad for parameter in probe.parameters())
