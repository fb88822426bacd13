"""The comparing of benchmarks/same_as_before.py: what it takes for a difference, what it tells, what it lets pass."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from same.allowed import TAKEN, Allowed, reason_for  # noqa: E402
from same.commands import Command, chosen, commands  # noqa: E402
from same.differences import Difference, Reader, compare_files, compare_json, same_value  # noqa: E402
from same.running import Runner  # noqa: E402
from same.trees import RENAMED, Tree  # noqa: E402


def told(before, after) -> list[tuple[str, str]]:
    return [(each.kind, each.path) for each in compare_json(before, after, file="f.json", taken=TAKEN)]


def compared(tmp_path, ending, write, before, after) -> list[Difference]:
    paths = [tmp_path / f"{side}{ending}" for side in ("before", "after")]
    for path, content in zip(paths, (before, after), strict=True):
        write(path, content)
    readers = (Reader({"/of/before": "FOLDER"}), Reader({"/of/after": "FOLDER"}))
    return list(compare_files(f"f{ending}", *paths, readers, TAKEN))


def test_a_field_that_is_new_is_told_and_one_that_is_gone_is_a_fault():
    found = list(compare_json({"a": 1}, {"b": 1}, file="f.json", taken=TAKEN))
    assert [(each.path, each.fault) for each in found] == [("a", True), ("b", False)]


@pytest.mark.parametrize(
    ("before", "after", "path"),
    [
        ({"a": [{"b": 1.0}, {"b": 2.0}]}, {"a": [{"b": 1.0}, {"b": 2.1}]}, "a[1].b"),
        ({"a": [1, 2]}, {"a": [1]}, "a"),
        ([{"a": "x"}], [{"a": "y"}], "[0].a"),
        ({"a": None}, {"a": 0}, "a"),
        ({"a": True}, {"a": 1}, "a"),
        ({"a": {}}, {"a": []}, "a"),
        ({"seed": 4_000_000_000}, {"seed": 4_000_000_001}, "seed"),
    ],
)
def test_what_differs_is_found_where_it_is(before, after, path):
    assert told(before, after) == [("changed", path)]


@pytest.mark.parametrize("pair", [(1.0, 1.0 + 1e-8), (0.0, 1e-12), (36, 36.0)])
def test_numbers_are_equal_to_a_millionth(pair):
    assert same_value(*pair)
    assert not same_value(pair[0], pair[1] + 1e-3)
    assert same_value(float("nan"), float("nan")) and not same_value(pair[0], float("nan"))


def test_what_a_clock_took_is_not_compared_but_must_be_there():
    assert told({"seconds": 1.0, "seconds_scoring": 2}, {"seconds": 9.0, "seconds_scoring": 3}) == []
    assert told({"seconds": 1.0}, {}) == [("gone", "seconds")]


def test_paths_of_the_two_folders_are_no_difference(tmp_path):
    def write(path, content):
        path.write_text(json.dumps(content))

    assert not compared(tmp_path, ".json", write, {"at": "/of/before/x"}, {"at": "/of/after/x"})
    assert compared(tmp_path, ".json", write, {"at": "/of/before/x"}, {"at": "/of/after/y"})


def test_lines_of_text_and_of_json(tmp_path):
    found = compared(tmp_path, ".txt", Path.write_text, "one\ntwo\n", "one\nthree\n")
    assert [each.path for each in found] == ["[1]"]
    found = compared(tmp_path, ".jsonl", Path.write_text, '{"a": 1}\n', '{"a": 2}\n')
    assert [each.path for each in found] == ["[0].a"]


def picture(changed: int, by: int) -> Image.Image:
    pixels = np.full((100, 100, 3), 100, dtype=np.uint8)
    pixels.reshape(-1, 3)[:changed, 1] += by
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("changed", "by", "kinds"), [(0, 0, []), (10, 1, ["slight"]), (11, 1, ["changed"]), (1, 2, ["changed"])]
)
def test_pictures_may_differ_by_one_grey_level_in_a_thousandth_of_the_pixels(tmp_path, changed, by, kinds):
    def write(path, content):
        content.save(path)

    assert [each.kind for each in compared(tmp_path, ".png", write, picture(0, 0), picture(changed, by))] == kinds


def test_pictures_of_other_sizes(tmp_path):
    def write(path, content):
        content.save(path)

    found = compared(tmp_path, ".png", write, picture(0, 0), picture(0, 0).resize((50, 100)))
    assert [each.path for each in found] == ["size"]


def test_a_small_spot_of_a_picture_may_be_allowed(tmp_path):
    def write(path, content):
        content.save(path)

    row = Allowed("tells its seconds", file="*.png", spot=(20, 1))
    for changed, reason in ((20, "tells its seconds"), (21, "")):
        (found,) = compared(tmp_path, ".png", write, picture(0, 0), picture(changed, 99))
        assert (found.spot, reason_for("generate topk", found, [row])) == ((changed, 1), reason)


def test_what_is_gone_is_allowed_only_where_that_is_said():
    gone = Difference("f.json", "cost.ratio", "gone")
    assert reason_for("generate topk", gone, [Allowed("other costs", path="cost.*")]) == ""
    assert reason_for("generate topk", gone, [Allowed("no costs", path="cost.*", gone=True)]) == "no costs"


def test_tensors_by_content(tmp_path):
    def write(path, content):
        np.savez(path, **content)

    one = {"a": np.arange(4.0), "b": np.arange(3), "gone": np.zeros(1)}
    other = {"a": np.array([0, 1, 2, 3.1]), "b": np.arange(3).astype(np.int32), "new": np.zeros(1)}
    assert not compared(tmp_path, ".npz", write, one, one)
    found = compared(tmp_path, ".npz", write, one, other)
    assert [(each.path, each.kind) for each in found] == [
        ("a", "changed"), ("b", "changed"), ("gone", "gone"), ("new", "new"),
    ]  # fmt: skip
    assert "1 others, by up to 0.1" in str(found[0])


def test_parquet_by_columns(tmp_path):
    def write(path, content):
        pq.write_table(pa.table(content), path)

    found = compared(tmp_path, ".parquet", write, {"a": [1, 2], "b": ["x", "y"]}, {"a": [1.0, 2.0], "b": ["x", "z"]})
    assert [each.path for each in found] == ["types.a", "b[1]"]


def decision(text: str) -> dict:
    return {"decisions": [{"decision": text}]}


def test_words_that_were_renamed_are_allowed_and_no_others():
    row = Allowed("renamed", path="*decisions.decision", renamed=(("wave", "round"),))

    def reason(after: str) -> str:
        before = decision("open another wave")
        (difference,) = compare_json([before], [decision(after)], file="result.json", taken=TAKEN)
        return reason_for("generate until", difference, [row])

    assert reason("open another round") == "renamed"
    assert reason("finish, no more rounds") == ""


def test_a_row_of_one_scorer_is_allowed_and_no_other():
    row = Allowed("drawn anew", command="evaluate *", file="*report.json", inside=(("scorer", "random"),))
    before = {"choosing": [{"scorer": "random", "spearman": [0.1]}, {"scorer": "probe", "spearman": [0.5]}]}
    after = {"choosing": [{"scorer": "random", "spearman": [0.2]}, {"scorer": "probe", "spearman": [0.6]}]}
    found = list(compare_json(before, after, file="report/report.json", taken=TAKEN))
    assert [reason_for("evaluate dataset", each, [row]) for each in found] == ["drawn anew", ""]
    assert reason_for("generate topk", found[0], [row]) == ""


def test_commands_that_are_chosen_come_with_what_they_need():
    everything = commands([])
    assert [each.name for each in chosen(everything, ["generate own probe"])] == [
        "prompts", "collect", "score", "train", "generate own probe",
    ]  # fmt: skip
    known: set[str] = set()
    for each in everything:
        assert known.issuperset(each.given), f"{each.name} needs what comes later"
        known.add(each.name)


def test_an_older_tree_is_given_the_older_name_of_an_option():
    (until,) = (each for each in commands([]) if each.name == "generate until")
    words = {older: Tree("t", Path("src"), older).words(until, Path("made")) for older in ((), RENAMED)}
    assert "--rounds" in words[()] and "--waves" not in words[()]
    assert "--waves" in words[RENAMED] and "--rounds" not in words[RENAMED]
    (plan,) = (each for each in commands([]) if each.name == "plan fixed")
    assert "made/scores.npz" in Tree("t", Path("src")).words(plan, Path("made"))


def fake_tree(folder: Path, name: str, lines: list[str]) -> Tree:
    """A package of the same name that does no more than these lines say, in the folder that it is run in."""
    package = folder / name / "probeselect"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nfrom pathlib import Path\n" + "\n".join(lines))
    return Tree(name, package.parent)


def test_a_command_is_run_by_both_and_the_next_one_finds_its_files(tmp_path):
    old = 'Path(sys.argv[1]).write_text(f"{len(list(Path().iterdir()))} lay there\\n")'
    trees = fake_tree(tmp_path, "before", [old]), fake_tree(tmp_path, "after", [old, "sys.exit(len(sys.argv) - 2)"])
    runner = Runner(*trees, tmp_path / "ran", tmp_path)
    assert not runner.compare(Command("first", ("a.txt",))).faults
    assert not runner.compare(Command("second", ("b.txt",), given=("first",))).faults
    written = (tmp_path / "ran" / "after" / "second" / "files" / "b.txt").read_text()
    assert written == "1 lay there\n"
    (fault,) = runner.compare(Command("third", ("c.txt", "more"))).faults
    assert str(fault) == "run after: exit code 0 was expected -> exit code 1: nothing was said"


def test_a_file_that_was_given_is_compared_only_once_it_changes(tmp_path):
    trees = (
        fake_tree(tmp_path, "before", ['Path(sys.argv[1]).write_text("1\\n")']),
        fake_tree(tmp_path, "after", ['Path(sys.argv[1]).write_text("2\\n")']),
    )
    runner = Runner(*trees, tmp_path / "ran", tmp_path)
    assert [each.file for each in runner.compare(Command("first", ("a.txt",))).faults] == ["a.txt"]
    assert [each.file for each in runner.compare(Command("next", ("b.txt",), given=("first",))).faults] == ["b.txt"]
    again = Command("again", ("a.txt",), given=("first",), from_before=True)
    assert [each.file for each in runner.compare(again).faults] == ["a.txt"]
