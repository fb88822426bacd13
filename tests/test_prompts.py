"""Prompt files: every format reads the same list, and what is wrong in a file is said in one line with its place."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probeselect.core.errors import UsageError
from probeselect.data.prompts import Prompt, PromptList, read_prompts

COCO = {
    "info": {"description": "COCO 2017 Dataset", "year": 2017},
    "licenses": [],
    "images": [{"id": 203564, "file_name": "000000203564.jpg"}],
    "annotations": [
        {"image_id": 203564, "id": 37, "caption": "A bicycle replica with a clock as the front wheel."},
        {"image_id": 322141, "id": 49, "caption": " A room with blue walls and a white sink and door.\n"},
        {"image_id": 16977, "id": 89, "caption": "A car that seems to be parked illegally behind a legally parked car"},
        {"image_id": 999, "id": 101, "caption": "A room with blue walls and a white sink and door."},
    ],
}


def hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def read(folder: Path, name: str, content: bytes | str) -> PromptList:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompts(path)


def parquet(columns: dict[str, Any]) -> bytes:
    """A Parquet file; a column is a list or an Arrow array."""
    arrow = pytest.importorskip("pyarrow")
    sink = arrow.BufferOutputStream()
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def pairs(read: PromptList) -> list[tuple[str, str]]:
    return [(prompt.id, prompt.text) for prompt in read.prompts]


def test_the_id_is_the_start_of_a_known_hash(tmp_path: Path) -> None:
    assert pairs(read(tmp_path, "p.txt", "abc")) == [("ba7816bf8f01cfea", "abc")]  # the example of FIPS 180


@pytest.mark.parametrize(
    "content",
    [
        b"a cat\nan \xc3\xa9t\xc3\xa9\n",
        b"a cat\nan \xc3\xa9t\xc3\xa9",
        b"a cat\r\nan \xc3\xa9t\xc3\xa9\r\n",
        b"\xef\xbb\xbfa cat\n\n  \t\r\nan \xc3\xa9t\xc3\xa9\n\n",
    ],
)
@pytest.mark.parametrize("name", ["p.txt", "p", "p.prompts"])
def test_text_is_a_prompt_a_line(tmp_path: Path, name: str, content: bytes) -> None:
    found = read(tmp_path, name, content)
    assert found.prompts == (Prompt(hashed("a cat"), "a cat"), Prompt(hashed("an été"), "an été"))
    assert found.notes == ()


def test_only_line_feeds_end_a_line_and_spaces_stay(tmp_path: Path) -> None:
    assert [text for _, text in pairs(read(tmp_path, "p.txt", " a \u2028b\x0bc\x85d\re \n"))] == [
        " a \u2028b\x0bc\x85d\re "
    ]


@pytest.mark.parametrize("key", ["prompt", "text", "caption"])
def test_json_lines_json_and_parquet_read_the_same(tmp_path: Path, key: str) -> None:
    rows = [{key: "a cat", "id": "x"}, {key: "a dog", "id": None}]
    wanted = [("x", "a cat"), (hashed("a dog"), "a dog")]
    lines = "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in rows)
    assert pairs(read(tmp_path, "p.jsonl", lines)) == wanted
    assert pairs(read(tmp_path, "p.json", "\ufeff" + json.dumps(rows, indent=1))) == wanted
    assert pairs(read(tmp_path, "P.PARQUET", parquet({key: ["a cat", "a dog"], "id": ["x", None]}))) == wanted


def test_json_strings_and_objects_may_be_mixed(tmp_path: Path) -> None:
    wanted = [(hashed("a cat"), "a cat"), (hashed("a\ndog"), "a\ndog"), ("7", "a cow")]
    entries = ["a cat", {"prompt": "a\ndog"}, {"text": "a cow", "id": 7, "score": 1.5}]
    assert pairs(read(tmp_path, "p.jsonl", "\n".join(map(json.dumps, entries)))) == wanted
    assert pairs(read(tmp_path, "p.json", json.dumps(entries))) == wanted


def test_prompt_goes_before_text_before_caption(tmp_path: Path) -> None:
    row = {"caption": "c", "text": "t", "prompt": "p"}
    assert read(tmp_path, "p.jsonl", json.dumps(row)).prompts[0].text == "p"
    assert read(tmp_path, "p.parquet", parquet({key: [text] for key, text in row.items()})).prompts[0].text == "p"
    del row["prompt"]
    assert read(tmp_path, "p.jsonl", json.dumps(row)).prompts[0].text == "t"


def test_coco_captions_are_stripped_and_named_by_their_annotation(tmp_path: Path) -> None:
    found = read(tmp_path, "captions_train2017.json", json.dumps(COCO))
    assert pairs(found) == [
        ("37", "A bicycle replica with a clock as the front wheel."),
        ("49", "A room with blue walls and a white sink and door."),
        ("89", "A car that seems to be parked illegally behind a legally parked car"),
    ]
    assert found.notes == (
        "duplicate prompts: 1 annotation repeats an earlier one and is kept once "
        "(first: annotation 4 repeats annotation 2)",
    )


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_reads_every_type_of_text(tmp_path: Path, kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    types = {"string": arrow.string(), "large_string": arrow.large_string()}
    texts = arrow.array(["a cat", "a dog"], types.get(kind))
    column = texts.dictionary_encode() if kind == "dictionary" else texts
    ids = arrow.array([3, 2**63], arrow.uint64())
    content = parquet({"clip": [0.5, 0.25], "prompt": column, "id": ids})
    assert pairs(read(tmp_path, "p.parquet", content)) == [("3", "a cat"), (str(2**63), "a dog")]


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "prompt=x"
    folder.mkdir()
    assert read(folder, "p.parquet", parquet({"text": ["a cat"]})).prompts[0].text == "a cat"


def test_duplicates_are_kept_once_with_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, "p.txt", "a\nb\n\nc\nb\na\nb\n")
    assert [text for _, text in pairs(found)] == ["a", "b", "c"]
    assert found.notes == (
        "duplicate prompts: 3 lines repeat an earlier one and are kept once (first: line 5 repeats line 2)",
    )


def test_a_duplicate_keeps_the_first_id(tmp_path: Path) -> None:
    found = read(tmp_path, "p.json", json.dumps([{"text": "a", "id": 1}, {"text": "a", "id": 2}, "a"]))
    assert pairs(found) == [("1", "a")]
    assert found.notes == (
        "duplicate prompts: 2 items repeat an earlier one and are kept once (first: item 2 repeats item 1)",
    )


def test_ids_depend_on_nothing_but_the_text(tmp_path: Path) -> None:
    before = read(tmp_path, "p.txt", "a\nb\nc")
    after = read(tmp_path, "q.jsonl", '"c"\n"new"\n{"prompt": "a"}\n"b"')
    assert set(before.prompts) < set(after.prompts)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "é", "x" * 5000, " 1", "a\n"])
def test_an_id_may_be_any_text(tmp_path: Path, name: str) -> None:
    assert pairs(read(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "id": name}))) == [(name, "a")]


def listed(*entries: tuple[str, str]) -> PromptList:
    return PromptList(tuple(Prompt(*entry) for entry in entries), ())


def test_the_digest_is_of_ids_and_texts_in_order() -> None:
    digest = listed(("1", "a"), ("2", "b")).digest
    assert len(digest) == 64
    assert int(digest, 16)
    assert digest == sha256(b'[["1", "a"], ["2", "b"]]').hexdigest()
    assert digest == PromptList(listed(("1", "a"), ("2", "b")).prompts, ("a note",)).digest
    others = [
        listed(("2", "b"), ("1", "a")),
        listed(("1", "a"), ("3", "b")),
        listed(("1", "a"), ("2", "c")),
        listed(("1", "b"), ("2", "a")),
        listed(("1", "a")),
        listed(("1", "a2"), ("", "b")),
        listed(("1a", ""), ("2", "b")),
        listed(("1", 'a"], ["2", "b')),
        listed(("1", "a\n2"), ("", "b")),
        listed(("1", "a\\")),
    ]
    assert len({digest, *(other.digest for other in others)}) == len(others) + 1


def test_the_digest_does_not_depend_on_the_format(tmp_path: Path) -> None:
    text = read(tmp_path, "p.txt", "a cat\r\nun été\r\na cat\r\n")
    assert text.digest == read(tmp_path, "p.json", '["a cat", "un \\u00e9t\\u00e9"]').digest
    assert text.digest == read(tmp_path, "p.parquet", parquet({"text": ["a cat", "un été"]})).digest


@settings(deadline=None)  # cores and disk are shared
@given(st.lists(st.tuples(st.text(), st.text())), st.lists(st.tuples(st.text(), st.text())))
def test_equal_digests_mean_equal_lists(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    assert (listed(*one).digest == listed(*other).digest) == (one == other)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.parquet"])
def test_a_prompt_of_10000_characters(tmp_path: Path, name: str) -> None:
    text = "é" * 10_000
    contents: dict[str, str] = {"p.txt": text, "p.jsonl": json.dumps(text), "p.json": json.dumps([text])}
    content = parquet({"prompt": [text]}) if name == "p.parquet" else contents[name]
    assert pairs(read(tmp_path, name, content)) == [(hashed(text), text)]


prompt_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(str.strip)
one_line = prompt_texts.filter(lambda text: "\n" not in text and not text.endswith("\r"))
ids = st.none() | st.integers(-(2**63), 2**63 - 1) | prompt_texts.map(lambda text: f"id {text}")


def round_trip(name: str, content: bytes | str) -> list[tuple[str, str]]:
    with TemporaryDirectory() as folder:
        return pairs(read(Path(folder), name, content))


@settings(deadline=None)  # cores and disk are shared
@given(st.lists(one_line, min_size=1, unique=True), st.sampled_from(["\n", "\r\n", "\n \n"]), st.booleans())
def test_text_round_trip(texts: list[str], end: str, closed: bool) -> None:
    content = "\ufeff" + end.join(texts) + end * closed
    assert round_trip("p.txt", content) == [(hashed(text), text) for text in texts]


@settings(deadline=None)  # cores and disk are shared
@given(
    st.lists(st.tuples(ids, prompt_texts), min_size=1, unique_by=(lambda p: p[1], lambda p: p[0] or p[1])),
    st.booleans(),
)
def test_json_lines_round_trip(given_pairs: list[tuple[str | int | None, str]], escaped: bool) -> None:
    lines = [json.dumps({"id": name, "prompt": text}, ensure_ascii=escaped) for name, text in given_pairs]
    wanted = [(hashed(text) if name is None else str(name), text) for name, text in given_pairs]
    assert round_trip("p.jsonl", "\n".join(lines)) == wanted
    assert round_trip("p.json", f"[{','.join(lines)}]") == wanted


@settings(deadline=None)  # cores and disk are shared
@given(st.lists(prompt_texts, min_size=1, unique=True))
def test_parquet_round_trip(texts: list[str]) -> None:
    wanted = [(f"id {i}", text) for i, text in enumerate(texts)]
    assert round_trip("p.parquet", parquet({"id": [name for name, _ in wanted], "text": texts})) == wanted


TEXT_ERRORS = [
    ("p.txt", b"", ": holds no prompt; give at least one"),
    ("p.txt", b"\xef\xbb\xbf\n \r\n", ": holds no prompt; give at least one"),
    ("p.txt", b"a cat\n\nab\xff\n", ", line 3 is not valid UTF-8 at byte 2: re-encode it"),
    ("p.txt", "a\né".encode("utf-16"), ", line 1 is not valid UTF-8 at byte 0: re-encode it"),
    ("p.txt", b"\xef\xbb\xbf\xc3\xa9\xc3", ", line 1 is not valid UTF-8 at byte 2: re-encode it"),
    ("p.txt", b"ok\r\n\xc3\xa9\0\r\n", ", line 2 holds a NUL at byte 2: remove it"),
    ("p.txt", "ab".encode("utf-16-le"), ", line 1 holds a NUL at byte 1: remove it"),
]
WANT_LINE = "give an object or a string a line"
LINE_ERRORS = [
    ("p.jsonl", b"\n", ": holds no prompt; give at least one"),
    ("p.jsonl", b'"a"\n"b\xe9"', ", line 2 is not valid UTF-8 at byte 2: re-encode it"),
    ("p.jsonl", b'"a"\n\n"\xc3\xa9" x', f", line 3 is not JSON: Extra data at byte 5; {WANT_LINE}"),
    ("p.jsonl", b'{"prompt": }', f", line 1 is not JSON: Expecting value at byte 11; {WANT_LINE}"),
    ("p.jsonl", b'"a\0"', f", line 1 is not JSON: Invalid control character at byte 2; {WANT_LINE}"),
    ("p.jsonl", b'"a"\n{"text": "\\u00e9\\u0000"}', ", line 2: text holds a NUL at byte 2: remove it"),
    ("p.jsonl", b'"a\\ud800"', ", line 1 is not valid UTF-8 at byte 1: re-encode it"),
    ("p.jsonl", b'"a"\n" "', ", line 2 is empty: give some text"),
    ("p.jsonl", b'{"caption": "\\n"}', ", line 1: caption is empty: give some text"),
    ("p.jsonl", b"null", ", line 1 is null; give a string or an object"),
    ("p.jsonl", b'["a"]', ", line 1 is a list; give a string or an object"),
    ("p.jsonl", b'{"prompt": 3}', ", line 1: prompt is a number; give a string"),
    ("p.jsonl", b'{"prompt": null, "text": "a"}', ", line 1: prompt is null; give a string"),
    ("p.jsonl", b"{}", ", line 1 has no 'prompt', 'text' or 'caption'; it has none"),
    ("p.jsonl", b'"a"\n{"Text": "a"}', ", line 2 has no 'prompt', 'text' or 'caption'; it has 'Text'"),
    ("p.jsonl", b'{"text": "a", "id": ""}', ", line 1: id is empty; give a string or an integer"),
    ("p.jsonl", b'{"text": "a", "id": " "}', ", line 1: id is empty; give a string or an integer"),
    ("p.jsonl", b'{"text": "a", "id": true}', ", line 1: id is a boolean; give a string or an integer"),
    ("p.jsonl", b'{"text": "a", "id": 1.5}', ", line 1: id is of type float; give a string or an integer"),
    ("p.jsonl", b'{"text": "a", "id": {}}', ", line 1: id is an object; give a string or an integer"),
    ("p.jsonl", b'{"text": "a", "id": "\\ud800"}', r", line 1: id '\ud800' is not Unicode text; re-encode it"),
    (
        "p.jsonl",
        b'{"text": "a", "id": "1"}\n\n{"text": "b", "id": 1}',
        ", line 3: id '1' is that of line 1, whose prompt is another; give each prompt its own",
    ),
    (
        "p.jsonl",  # the second id of a repeated prompt is taken too
        b'{"text": "a", "id": 1}\n{"text": "a", "id": 2}\n{"text": "b", "id": 2}',
        ", line 3: id '2' is that of line 2, whose prompt is another; give each prompt its own",
    ),
]
WANT_JSON = "give a list or COCO captions; JSON lines go into a .jsonl"
JSON_ERRORS = [
    ("p.json", b"", ": holds no prompt; give at least one"),
    ("p.json", b"[]", ": holds no prompt; give at least one"),
    ("p.json", b'{"annotations": []}', ": holds no prompt; give at least one"),
    ("p.json", b'["a",\n "b\xff"]', ", line 2 is not valid UTF-8 at byte 3: re-encode it"),
    ("p.json", b'["a",\n "\xc3\xa9" "c"]', f", line 2 is not JSON: Expecting ',' delimiter at byte 6; {WANT_JSON}"),
    ("p.json", b'"a"\n"b"', f", line 2 is not JSON: Extra data at byte 0; {WANT_JSON}"),
    ("p.json", b'"a"', ": is a string; give a list, or an object whose 'annotations' are a list"),
    ("p.json", b'{"prompt": "a"}', ": is an object; give a list, or an object whose 'annotations' are a list"),
    ("p.json", b'{"annotations": 3}', ": is an object; give a list, or an object whose 'annotations' are a list"),
    ("p.json", b'["a", 3]', ", item 2 is a number; give a string or an object"),
    ("p.json", b'["a", "b\\u0000"]', ", item 2 holds a NUL at byte 1: remove it"),
    ("p.json", b'{"annotations": ["a", {"caption": " "}]}', ", annotation 2: caption is empty: give some text"),
    ("p.json", b'{"annotations": [{"caption": 1}]}', ", annotation 1: caption is a number; give a string"),
    (
        "p.json",
        b'{"annotations": [{"bbox": [1], "id": 4}]}',
        ", annotation 1 has no 'prompt', 'text' or 'caption'; it has 'bbox' and 'id'",
    ),
    (
        "p.json",
        b'{"annotations": [{"caption": "a", "id": 4}, {"caption": "b", "id": 4}]}',
        ", annotation 2: id '4' is that of annotation 1, whose prompt is another; give each prompt its own",
    ),
]


@pytest.mark.parametrize(("name", "content", "says"), TEXT_ERRORS + LINE_ERRORS + JSON_ERRORS)
def test_refuses(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, content)
    assert str(caught.value) == f"{tmp_path / name}{says}"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": []}, ": holds no prompt; give at least one"),
        ({"url": ["a"], "Prompt": ["a"]}, ": no column 'prompt', 'text' or 'caption'; there are 'url' and 'Prompt'"),
        (
            {f"c{i}": [0] for i in range(12)},
            ": no column 'prompt', 'text' or 'caption'; there are "
            "'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7', 'c8' and 3 more",
        ),
        ({"prompt": ["a", None]}, ", row 2: prompt is null; give a string"),
        ({"prompt": [b"a"]}, ", row 1: prompt is of type bytes; give a string"),
        ({"text": [1]}, ", row 1: text is a number; give a string"),
        ({"text": ["a", "é\0"]}, ", row 2: text holds a NUL at byte 2: remove it"),
        ({"text": ["a", ""]}, ", row 2: text is empty: give some text"),
        ({"text": ["a"], "id": [0.5]}, ", row 1: id is of type float; give a string or an integer"),
        ({"text": ["a"], "id": [""]}, ", row 1: id is empty; give a string or an integer"),
        (
            {"text": ["a", "c", "b"], "id": ["x", "y", "x"]},
            ", row 3: id 'x' is that of row 1, whose prompt is another; give each prompt its own",
        ),
    ],
)
def test_refuses_parquet(tmp_path: Path, columns: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "p.parquet", parquet(columns))
    assert str(caught.value) == f"{tmp_path / 'p.parquet'}{says}"


def test_refuses_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    offsets, data = arrow.py_buffer(b"\0\0\0\0\1\0\0\0\4\0\0\0"), arrow.py_buffer(b"abc\xff")
    column = arrow.StringArray.from_buffers(2, offsets, data)
    with pytest.raises(UsageError, match=r"p\.parquet, row 2: text is not valid UTF-8 at byte 2: re-encode it$"):
        read(tmp_path, "p.parquet", parquet({"text": column}))


@pytest.mark.parametrize("cut", [b"", b"PAR1", b"a cat\na dog\n"])
def test_refuses_what_is_no_parquet(tmp_path: Path, cut: bytes) -> None:
    content = cut or parquet({"text": ["a cat"]})[:-20]
    with pytest.raises(
        UsageError, match=r"p\.parquet: not a Parquet file that can be read \(.+\); write it anew$"
    ) as e:
        read(tmp_path, "p.parquet", content)
    assert "\n" not in str(e.value)


def test_refuses_two_columns_of_one_name(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table([["a"], ["b"]], names=["text", "text"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UsageError, match="not a Parquet file that can be read"):
        read_prompts(tmp_path / "p.parquet")


def test_says_that_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"p\.parquet: reading Parquet needs pyarrow; pip install pyarrow$"):
        read(tmp_path, "p.parquet", b"PAR1")


@pytest.mark.parametrize("content", ["[" * 100_000, "[1" + "0" * 5000 + "]"])
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_refuses_json_beyond_what_python_reads(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}, line 2 is no JSON|{name}, line 1 is no JSON") as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.parquet"])
def test_refuses_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: no such file; give a file of prompts"
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: is a folder; give a file of prompts"
    below = tmp_path / "file" / name
    below.parent.write_text("a")
    with pytest.raises(UsageError, match=r"cannot be read \(.*Not a directory.*\); give a file of prompts$"):
        read_prompts(below)


def test_long_ids_and_names_are_cut_in_messages(tmp_path: Path) -> None:
    rows = [{"text": text, "id": "x\n" * 10_000} for text in "ab"]
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "p.json", json.dumps(rows))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_imports_neither_torch_nor_pyarrow() -> None:
    code = "import sys, probeselect.data.prompts; print({'torch', 'pyarrow'} & set(sys.modules))"
    source = Path(__file__).parents[1] / "src"
    run = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
