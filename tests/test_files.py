"""Every JSON file that is loaded, and what may be wrong with one: said in one line, at once, and that is all."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Meta, structs
from stub_config import dataset_config

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.files import MAX_BYTES, checked, parse_json, read_json, to_json
from probeselect.data.config import CONFIG, PinnedPrompts, count_prompts
from probeselect.data.dataset import Dataset, pin
from probeselect.data.sealed import MANIFEST, DamagedError, canonical_json, read_manifest, seal, sha256
from probeselect.data.shards import Made, ShardManifest
from probeselect.embedded import SHIPPED
from probeselect.evaluation.timing import read_timing
from probeselect.policies.plan_file import load_plan
from probeselect.probe.config import Fusion, Head, ProbeConfig, Trained, config_json, read_config
from probeselect.probe.log import HeadFigures, LogLine, log_bytes, read_log
from probeselect.probe.options import TrainOptions

PROBE = ProbeConfig(
    backbone="tiny", denoiser="UNet2DConditionModel", architecture="0123", latent_channels=4, taps=("mid", "x0"),
    tap_channels=(64, 4), projected_channels=(8, 4), rungs=(0.2, 0.4),
    heads=(Head("scene-check", "features", (26, 16, 16)), Head("clip-b32", "scalar")), width=8,
    fusions=(Fusion("scene-check", 0.2, 0.5, 0.25),), training=Trained("ab", TrainOptions(epochs=3)),
)  # fmt: skip
DATASET = dataset_config(3, n=4, arguments={"num_inference_steps": 20, "guidance_scale": 3.0})
LINE = LogLine(epoch=0, loss=0.5, spearman=None, best=True, figures={"clip-b32@0.2": HeadFigures(0.5, None)})
RUN = {
    "format": 1, "scorer": "random", "cost": {"denoiser_rows": 100, "seconds": 6.0, "seconds_scoring": 1.0},
    "candidates": [{"seed": 1, "scores": [{"rung": 0.2, "score": None}]}],
}  # fmt: skip
PLAN = {"format": 1, "n": 5, "k": 1, "rungs": [{"step": 3, "keep": 1}], "total_steps": 20}


@dataclass(frozen=True)
class Kind:
    """A file, its reader, a field of it that is a number, and one beside it that must be there (the same: "")."""

    name: str
    valid: bytes
    read: Callable[[Path], Any]
    number: tuple[str, ...]
    needed: str = ""
    error: type[ProbeSelectError] = UsageError
    seal: Callable[[dict[str, Any]], bytes] = lambda fields: json.dumps(fields).encode()


def sealed(fields: dict[str, Any]) -> bytes:
    """A manifest that is what it says, whatever it says."""
    content = {name: value for name, value in fields.items() if name != "sha256"}
    return canonical_json({**content, "sha256": sha256(canonical_json(content))})


MANIFEST_BYTES = sealed(
    {"format": 1, "files": {"rows": {"bytes": 3, "sha256": "0"}}, "rows": 2, "made": {"largest_wave": 3}}
)
KINDS = {
    "probe": Kind("config.json", config_json(PROBE), lambda path: read_config(path.parent), ("width",), "taps"),
    "dataset": Kind(
        CONFIG, canonical_json(msgspec.to_builtins(DATASET)), lambda path: Dataset(path.parent), ("prompts", "count")
    ),
    "manifest": Kind(
        MANIFEST, MANIFEST_BYTES, lambda path: read_manifest(path.parent, ShardManifest), ("files", "rows", "bytes"),
        error=DamagedError, seal=sealed,
    ),
    "result": Kind(
        "result.json", json.dumps(RUN).encode(), lambda path: read_timing([path]), ("cost", "denoiser_rows")
    ),
    "log": Kind("log.jsonl", log_bytes([LINE]), read_log, ("epoch",)),
    "plan": Kind("plan.json", json.dumps(PLAN).encode(), load_plan, ("n",)),
}  # fmt: skip


def with_number(kind: Kind, text: str) -> bytes:
    """The file with something else in place of its number."""
    fields = json.loads(kind.valid)
    inner = fields
    for name in kind.number[:-1]:
        inner = inner[name]
    inner[kind.number[-1]] = "HERE"
    return json.dumps(fields).replace('"HERE"', text).encode()


def changed(kind: Kind, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with something done to the object that its number is in."""
    fields = json.loads(kind.valid)
    inner = fields
    for name in kind.number[:-1]:
        inner = inner[name]
    change(inner)
    return kind.seal(fields)


def deep(kind: Kind) -> bytes:
    return kind.valid.strip()[:-1] + b', "surplus": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


DAMAGE: dict[str, Callable[[Kind], bytes]] = {
    "empty": lambda kind: b"",
    "truncated": lambda kind: kind.valid.strip()[:-1],
    "half of it": lambda kind: kind.valid[: len(kind.valid) // 2],
    "something behind it": lambda kind: kind.valid.strip() + b"x",
    "not UTF-8": lambda kind: kind.valid.replace(b'"', b'"\xff', 1),
    "not UTF-8 in a value": lambda kind: with_number(kind, '"Q"').replace(b"Q", b"\xff"),
    "UTF-16": lambda kind: kind.valid.decode().encode("utf-16"),
    "half a surrogate": lambda kind: with_number(kind, '"\\ud800"'),
    "a list": lambda kind: b"[[]]",
    "null": lambda kind: b"null",
    "a number": lambda kind: b"7",
    "text": lambda kind: b'"\\u001b[31m"',
    "an empty object": lambda kind: b"{}",
    "a pickle": lambda kind: b"\x80\x05\x95",
    "100000 brackets": lambda kind: b"[" * 100_000,
    "100000 brackets in a field that is not known": deep,
    "NaN": lambda kind: with_number(kind, "NaN"),
    "Infinity": lambda kind: with_number(kind, "Infinity"),
    "-Infinity": lambda kind: with_number(kind, "-Infinity"),
    "1e400": lambda kind: with_number(kind, "1e400"),
    "2**70": lambda kind: with_number(kind, str(2**70)),
    "5000 digits": lambda kind: with_number(kind, "9" * 5000),
    "a number below zero": lambda kind: with_number(kind, "-1"),
    "text for a number": lambda kind: with_number(kind, '"48"'),
    "true for a number": lambda kind: with_number(kind, "true"),
    "null for a number": lambda kind: with_number(kind, "null"),
    "a list for a number": lambda kind: with_number(kind, "[1]"),
    "a field is missing": lambda kind: changed(kind, lambda fields: fields.pop(kind.needed or kind.number[-1])),
    "a field twice": lambda kind: kind.valid.strip().replace(b"{", b'{"format": 1, "format": 1, ', 1),
    "another format": lambda kind: kind.seal({**json.loads(kind.valid), "format": 2}),
    "format of a wrong type": lambda kind: kind.seal({**json.loads(kind.valid), "format": "1"}),
}
UNHURT = {  # a log is lines, which say nothing of a format; a plan may be for any number of candidates
    ("log", "another format"), ("log", "format of a wrong type"), ("log", "empty"), ("plan", "2**70"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_not_right_is_refused_in_a_line(tmp_path: Path, name: str, damage: str) -> None:
    kind, path = KINDS[name], tmp_path / KINDS[name].name
    path.write_bytes(kind.valid)
    kind.read(path)
    path.write_bytes(DAMAGE[damage](kind))
    if (name, damage) in UNHURT:
        kind.read(path)
        return
    began = time.perf_counter()
    with pytest.raises(kind.error) as caught:
        kind.read(path)
    assert time.perf_counter() - began < 2
    said = str(caught.value)
    assert kind.name in said and said.isprintable() and len(said) - len(str(path)) < 250, said


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path: Path, name: str) -> None:
    kind, path = KINDS[name], tmp_path / KINDS[name].name
    path.write_bytes(kind.valid)
    os.truncate(path, 2**40)  # takes no place on the disk
    with pytest.raises(kind.error, match=kind.name):
        kind.read(path)
    path.unlink()
    os.mkfifo(path)  # reading it would wait for a writer, without end
    with pytest.raises(kind.error, match=kind.name):
        kind.read(path)


SAID = [
    ("probe", "width", '"48"', "width = '48': must be a whole number from 8 to 65536, a multiple of 8"),
    ("probe", "width", "9", "width = 9: must be a whole number from 8"),
    ("probe", "heads", "[]", "heads = []: must be a list of at least 1 and at most 64"),
    ("probe", "heads", '[{"evaluator": "a", "kind": "magic"}]', "heads[0].kind = 'magic': must be "),
    ("probe", "heads", '[{"evaluator": "a"}]', "heads[0]: has no field 'kind'"),
    ("probe", "heads", '[{"evaluator": "http://a/", "kind": "scalar"}]', "heads[0]: evaluator 'http://a/': a file may"),
    ("probe", "heads", '[{"evaluator": "a", "kind": "features"}]', "heads[0]: shape []: must be that of 1 to 16777216"),
    ("probe", "heads", '[{"evaluator": "a.b", "kind": "scalar"}, {"evaluator": "a_b", "kind": "scalar"}]', "heads: "),
    ("probe", "rungs", "[0.2, 1.5]", "rungs[1] = 1.5: must be a number above 0 and below 1"),
    ("probe", "taps", '["mid"]', "taps, tap_channels and projected_channels must be of one length"),
    ("probe", "fusions", '[{"evaluator": "a", "rung": 0.2, "probe": 1e400, "preview": 1}]', "fusions[0].probe = 1e400"),
    ("probe", "training", '{"options": {"val_share": 2}}', "training.options.val_share = 2: must be a number"),
    ("probe", "format", "2", "format = 2: this version reads format 1"),
    ("probe", "a\\n\\u001bb", "1", "unknown field 'a\\n\\x1bb'"),
    ("dataset", "prompts", '{"count": 1000000000000000000, "sha256": ""}', "prompts.count = 1000000000000000000: must"),
    ("dataset", "n", "0", "n = 0: must be a whole number from 1 to 65536"),
    ("dataset", "rungs", "[0.4, 0.2]", "rungs = 0.4,0.2: give increasing fractions"),
    ("dataset", "image_format", '"gif"', "image_format = 'gif': must be 'jpeg' or 'png' or 'webp'"),
    ("dataset", "scheduler", '{"class": "S", "betas": [1]}', "scheduler['betas'] = [1]: must be "),
    ("dataset", "scheduler", "{}", "scheduler: has no 'class'"),
    ("dataset", "arguments", '{"num_inference_steps": "20"}', "num_inference_steps'] = '20': must be a whole number"),
    ("result", "candidates", '[{"scores": 3}]', "candidates[0].scores = 3: must be a list"),
    ("result", "scorer", "null", "scorer = null: must be text"),
    ("log", "best", "1", "line 1: best = 1: must be true or false"),
    ("plan", "rungs", '[{"step": 3}]', "rungs[0]: has no field 'keep'"),
]


@pytest.mark.parametrize(("name", "field", "value", "says"), SAID)
def test_field_value_and_what_would_be_right_are_named(
    tmp_path: Path, name: str, field: str, value: str, says: str
) -> None:
    kind, path = KINDS[name], tmp_path / KINDS[name].name
    rest = {each: content for each, content in json.loads(kind.valid).items() if each != field}
    path.write_text(f'{{"{field}": {value}, {json.dumps(rest)[1:]}')
    with pytest.raises(kind.error) as caught:
        kind.read(path)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"files": {"rows": {}}}, {"files": []}, {"made": 3}, {"rows": "2"}, {"format": None}]
)
def test_a_manifest_that_has_its_digest_and_wrong_fields_is_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / MANIFEST).write_bytes(sealed({**json.loads(MANIFEST_BYTES), **wrong}))
    with pytest.raises(DamagedError, match=f"{MANIFEST}: {next(iter(wrong))}"):
        read_manifest(tmp_path, ShardManifest)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(config_json(PROBE))
    assert read_config(tmp_path) == PROBE
    lines = [LINE, structs.replace(LINE, epoch=1, loss=float("nan"))]
    (tmp_path / "log.jsonl").write_bytes(log_bytes(lines))
    assert read_log(tmp_path / "log.jsonl") == [LINE, structs.replace(LINE, epoch=1, loss=None)]
    about = ShardManifest(rows=2, made=Made(largest_wave=3, given_up=0))
    assert seal(tmp_path / "shard", {"rows": b"abc"}, about)
    found = read_manifest(tmp_path / "shard", ShardManifest)
    assert (found.rows, found.made, found.files["rows"].bytes) == (2, about.made, 3)
    for shipped in SHIPPED.values():
        text = (shipped.probe / "config.json").read_bytes()
        assert json.loads(config_json(read_config(shipped.probe))) == json.loads(text)


def test_an_old_log_goes_on(tmp_path: Path) -> None:
    """Figures of a head stood beside the others once; what they were is of no use to a training that goes on."""
    old = {"epoch": 0, "loss": 0.5, "spearman": 0.1, "clip@0.2": {"spearman": 0.1, "gain": 0.2}, "best": True}
    (tmp_path / "log.jsonl").write_text(json.dumps(old) + "\n")
    assert read_log(tmp_path / "log.jsonl") == [LogLine(epoch=0, loss=0.5, spearman=0.1, best=True)]


OLD = """{
 "architecture": "a",
 "arguments": {
  "guidance_scale": 3.0,
  "num_inference_steps": 20
 },
 "batch_size": null,
 "denoiser": "D",
 "device": "cpu",
 "dtype": "float32",
 "format": 1,
 "groups_per_shard": 2,
 "image_format": "png",
 "latent_channels": 2,
 "map_channels": 48,
 "map_side": 16,
 "model": "modèle",
 "n": 4,
 "pipeline": "P",
 "previews": false,
 "prompts": {
  "count": 3,
  "sha256": "0"
 },
 "revision": "",
 "run": "",
 "rungs": [
  0.2,
  0.4
 ],
 "scheduler": {
  "beta_start": 1e-05,
  "class": "S",
  "set_alpha_to_one": false,
  "trained_betas": null
 },
 "taps": [
  "tap",
  "x0"
 ],
 "weights": "w"
}
"""


def old_config() -> Any:
    scheduler = {"class": "S", "beta_start": 1e-05, "set_alpha_to_one": False, "trained_betas": None}
    return structs.replace(DATASET, model="modèle", scheduler=scheduler)


def test_the_bytes_of_a_dataset_are_those_of_the_first_version(tmp_path: Path) -> None:
    """Written by the version that kept a dictionary: such a folder is gone on with, and a new one is the same."""
    pin(tmp_path / "new", old_config())
    assert (tmp_path / "new" / CONFIG).read_text() == OLD
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / CONFIG).write_text(OLD)
    assert pin(tmp_path / "old", old_config()).config == old_config()


def test_a_field_that_is_not_known_is_kept_and_told(tmp_path: Path) -> None:
    pin(tmp_path, old_config())
    fields = json.loads(OLD)
    fields["prompts"]["language"] = "fr"
    (tmp_path / CONFIG).write_bytes(canonical_json({**fields, "later": [1]}))
    assert Dataset(tmp_path).n == 4
    count_prompts(tmp_path, 7)
    kept = json.loads((tmp_path / CONFIG).read_text())
    assert kept["later"] == [1] and kept["prompts"] == {"count": 7, "sha256": "0", "language": "fr"}
    with pytest.raises(
        UsageError, match=r"later was \[1\], now null; prompts.count was 7, now 3; prompts.language was"
    ):
        pin(tmp_path, old_config())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"n": 0}, "n = 0"), ({"rungs": (0.2, float("nan"))}, "rungs = 0.2,nan: give"),
     ({"taps": ("a", 5)}, r"taps\[1\] = 5"),
     ({"prompts": PinnedPrompts(0, "")}, "prompts.count = 0"), ({"arguments": {"a": object()}}, "cannot be written")],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pin(tmp_path, structs.replace(DATASET, **wrong))
    assert not (tmp_path / CONFIG).exists()


def test_a_dataset_that_promises_a_billion_shards_is_opened_at_once(tmp_path: Path) -> None:
    pin(tmp_path, structs.replace(DATASET, prompts=PinnedPrompts(10**9, ""), groups_per_shard=1))
    for name in ("shard-00003", "shard-123456", "shard-000004", "shard-x", "shard-99999999999"):
        (tmp_path / "shards" / name).mkdir()
    (tmp_path / "shards" / "shard-00005").touch()
    began = time.perf_counter()
    assert Dataset(tmp_path).done() == [3, 123456] and time.perf_counter() - began < 1


class Leaf(msgspec.Struct):
    a: float | None = None
    b: dict[str, int] = {}
    c: tuple[int, str] = (0, "")
    d: tuple[msgspec.Raw, ...] = ()
    e: Any = None

    def __post_init__(self) -> None:
        if self.a == 13:
            raise UsageError("a = 13 - at `$.b`")


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    leaves: dict[str, Leaf] = {}
    one: Leaf | int = 0
    text: str = ""


FORMS = [
    (Tree, '{"one": {"a": "x"}}', "one.a = 'x': must be a number or null"),
    (Tree, '{"one": []}', "one = []: must be an object or a whole number"),
    (Tree, '{"one": {"b": {"x": 1, "y.z": 1.5, "w": "2"}}}', "one.b"),
    (Tree, '{"one": {"c": [1]}}', "one.c = [1]: must be a list of 2"),
    (Tree, '{"one": {"c": [1, 2]}}', "one.c[1] = 2: must be text"),
    (Tree, '{"one": {"a": 13}}', "one: a = 13 - at `$.b`"),
    (Tree, '{"leaves": {"x": {"a": 13}}}', "a = 13 - at `$.b`"),
    (Tree, '{"leaves": {"x": {"a": "y"}}}', "leaves"),
    (Tree, '{"text": ["' + "z" * 1000 + '"]}', "text = ['" + "z" * 55 + "...: must be text"),
    (Tree, '{"surplus - at `$.one`": 1}', "unknown field 'surplus - at `$.one`'"),
    (Tree, '{"one": {"e": 1e400}}', "one.e"),
    (list[Tree] | Tree, "3", "must hold a list or an object"),
    (list[Tree] | Tree, '[{"text": 1}]', "[0].text = 1: must be text"),
]


@pytest.mark.parametrize(("form", "text", "says"), FORMS)
def test_a_refusal_in_words(form: Any, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_json(text.encode(), form, "somewhere")
    assert str(caught.value).startswith("somewhere: ") and says in str(caught.value)


def test_bounds_in_words() -> None:
    from typing import Annotated

    for form, wrong, says in (
        (Annotated[int, Meta(gt=3)], 3, "a whole number above 3"),
        (Annotated[float, Meta(le=3)], 4, "a number to 3"),
        (Annotated[list[int], Meta(max_length=1)], [1, 2], "a list of at most 1"),
        (Annotated[str, Meta(max_length=1)], "ab", "text of at most 1 characters"),
        (bool, 1, "true or false"),
    ):
        with pytest.raises(UsageError, match=f"must hold {says}$"):
            parse_json(json.dumps(wrong).encode(), form, "x")


def test_a_value_is_checked_as_a_file_is() -> None:
    assert checked(Leaf(a=1, c=[3, "x"]), "leaf") == Leaf(a=1.0, c=(3, "x"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"leaf: c\[0\] = 'x': must be a whole number"):
        checked(Leaf(c=("x", "y")), "leaf")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leaf: cannot be written"):
        checked(Leaf(e={1, object()}), "leaf")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "there is no such file"), (tmp_path, "is not a file")):
        with pytest.raises(UsageError, match=says):
            read_json(path, Tree)
    with pytest.raises(UsageError, match=f"{MAX_BYTES} are the most"):
        (tmp_path / "large").touch()
        os.truncate(tmp_path / "large", MAX_BYTES + 1)
        read_json(tmp_path / "large", Tree)
    assert to_json(Leaf(a=float("inf"), e=["é"])).decode().split() == [
        "{", '"a":', "null,", '"b":', "{},", '"c":', "[", "0,", '""', "],", '"d":', "[],", '"e":', "[", '"é"', "]", "}",
    ]  # fmt: skip
