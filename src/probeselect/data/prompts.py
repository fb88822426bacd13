"""Prompt files: text, JSON lines, JSON lists, COCO captions and Parquet, read into one list of distinct prompts.

Knows files and where in them something is wrong. Does not know what the prompts are for. Lines, rows and items count
from 1; bytes count from 0, in a line of the file or, where a field is named, in that field's text. No BOM counts.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from probeselect.core.candidates import check_prompt
from probeselect.core.errors import UsageError

TEXT_KEYS = ("prompt", "text", "caption")  # the first one there holds the prompt
ID_KEY = "id"
ID_DIGITS = 16
KINDS = {type(None): "null", bool: "a boolean", list: "a list", dict: "an object", str: "a string", int: "a number"}


@dataclass(frozen=True)
class Prompt:
    """A prompt; its `id` is as given, or the first 16 hex digits of the SHA-256 of the text."""

    id: str
    text: str


@dataclass(frozen=True)
class PromptList:
    """Prompts in the file's order, each text once, and a line in `notes` on what was left out."""

    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over ids and texts in order."""
        return sha256(json.dumps([[prompt.id, prompt.text] for prompt in self.prompts]).encode()).hexdigest()


def read_prompts(path: Path) -> PromptList:
    """Read a file of prompts; the suffix says how.

    `.jsonl`: on each line an object with "prompt", "text" or "caption" and maybe an "id", or a string. `.json`: a list
    of these, or COCO captions, which lose the white space around them. `.parquet`: a column "prompt", "text" or
    "caption", maybe a column "id". Any other: UTF-8 text, a prompt a line. Blank lines are skipped. An id is a string
    or an integer; null is none. Of equal texts the first is kept, and a note counts the others.

    Raises UsageError, naming the file and the place in it, for a file that cannot be read, holds no prompt, is not
    UTF-8, JSON or Parquet as its suffix says, an entry without a prompt, a prompt that is no string, is empty or holds
    a NUL, an empty id or one of another type, and an id that two texts share.
    """
    content = _content(path)
    match path.suffix.lower():
        case ".parquet":
            return _collect(path, "row", _rows(path, content))
        case ".jsonl":
            return _collect(path, "line", _json_lines(path, _decoded(path, content)))
        case ".json":
            return _collect(path, *_json_items(path, _decoded(path, content)))
        case _:
            return _collect(path, "line", _lines(_decoded(path, content)))


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; give a file of prompts") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a folder; give a file of prompts") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a file of prompts") from error
    if not content:
        raise _no_prompt(path)
    return content


def _no_prompt(path: Path) -> UsageError:
    return UsageError(f"{path}: holds no prompt; give at least one")


def _decoded(path: Path, content: bytes) -> str:
    content = content.removeprefix(BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = _end_of(content[: error.start])
        raise UsageError(f"{path}, line {line} is not valid UTF-8 at byte {byte}: re-encode it") from error


def _end_of(before: bytes) -> tuple[int, int]:
    """The line, and the byte in it, that follow `before`."""
    return before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank; only LF and CRLF end a line."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in _lines(text):
        yield number, _parsed(path, line, number, "give an object or a string a line")


def _json_items(path: Path, text: str) -> tuple[str, Iterator[tuple[int, object]]]:
    """What an entry is called, and the numbered entries."""
    parsed = _parsed(path, text, 1, "give a list or COCO captions; JSON lines go into a .jsonl")
    if isinstance(parsed, list):
        return "item", enumerate(parsed, 1)
    if isinstance(parsed, dict) and isinstance(parsed.get("annotations"), list):
        return "annotation", enumerate(map(_stripped, parsed["annotations"]), 1)
    raise UsageError(f"{path}: is {_kind(parsed)}; give a list, or an object whose 'annotations' are a list")


def _stripped(annotation: object) -> object:
    if isinstance(annotation, dict) and isinstance(annotation.get("caption"), str):
        return annotation | {"caption": annotation["caption"].strip()}
    return annotation


def _parsed(path: Path, text: str, line: int, wanted: str) -> object:
    """The JSON value that `text` is, which starts on a line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines, byte = _end_of(text[: error.pos].encode())
        reason = error.msg.removesuffix(" at")
        raise UsageError(f"{path}, line {line + lines - 1} is not JSON: {reason} at byte {byte}; {wanted}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {line} is no JSON that can be read: {error}; {wanted}") from error


def _rows(path: Path, content: bytes) -> Iterator[tuple[int, object]]:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(arrow.BufferReader(content))
        names = file.schema_arrow.names
        key = next((key for key in TEXT_KEYS if key in names), None)
        if key is None:
            raise UsageError(f"{path}: no column {_listed(TEXT_KEYS, 'or')}; there are {_listed(names, 'and')}")
        keys = [key, ID_KEY] if ID_KEY in names else [key]
        table = file.read(columns=keys)
        columns = [table.column(key) for key in keys]
    except (arrow.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: not a Parquet file that can be read ({reason}); write it anew") from error
    for number, scalars in enumerate(zip(*columns, strict=True), 1):
        where = f"{path}, row {number}"
        yield number, {key: _value(scalar, f"{where}: {key}") for key, scalar in zip(keys, scalars, strict=True)}


def _value(scalar: Any, where: str) -> object:
    try:
        value: object = scalar.as_py()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not valid UTF-8 at byte {error.start}: re-encode it") from error
    return value


def _collect(path: Path, unit: str, entries: Iterable[tuple[int, object]]) -> PromptList:
    """Each text once, with the id that came with it first."""
    prompts: list[Prompt] = []
    first: dict[str, int] = {}
    owners: dict[str, tuple[int, str]] = {}
    repeats: list[tuple[int, int]] = []
    for number, entry in entries:
        prompt = _prompt(entry, f"{path}, {unit} {number}")
        owner, text = owners.setdefault(prompt.id, (number, prompt.text))
        if text != prompt.text:
            raise UsageError(
                f"{path}, {unit} {number}: id {_short(prompt.id)} is that of {unit} {owner}, whose prompt is another; "
                "give each prompt its own"
            )
        if (earlier := first.setdefault(prompt.text, number)) == number:
            prompts.append(prompt)
        else:
            repeats.append((number, earlier))
    if not prompts:
        raise _no_prompt(path)
    return PromptList(tuple(prompts), _notes(unit, repeats))


def _notes(unit: str, repeats: list[tuple[int, int]]) -> tuple[str, ...]:
    if not repeats:
        return ()
    number, earlier = repeats[0]
    those = f"1 {unit} repeats an earlier one and is"
    if len(repeats) > 1:
        those = f"{len(repeats)} {unit}s repeat an earlier one and are"
    return (f"duplicate prompts: {those} kept once (first: {unit} {number} repeats {unit} {earlier})",)


def _prompt(entry: object, where: str) -> Prompt:
    if isinstance(entry, str):
        check_prompt(entry, where)
        return Prompt(_hashed(entry), entry)
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is {_kind(entry)}; give a string or an object")
    key = next((key for key in TEXT_KEYS if key in entry), None)
    if key is None:
        raise UsageError(f"{where} has no {_listed(TEXT_KEYS, 'or')}; it has {_listed(entry, 'and')}")
    text = entry[key]
    if not isinstance(text, str):
        raise UsageError(f"{where}: {key} is {_kind(text)}; give a string")
    check_prompt(text, f"{where}: {key}")
    return Prompt(_id(entry.get(ID_KEY), text, where), text)


def _id(given: object, text: str, where: str) -> str:
    if given is None:
        return _hashed(text)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise UsageError(f"{where}: {ID_KEY} is {_kind(given)}; give a string or an integer")
    name = str(given)
    if not name.strip():
        raise UsageError(f"{where}: {ID_KEY} is empty; give a string or an integer")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: {ID_KEY} {_short(name)} is not Unicode text; re-encode it") from error
    return name


def _hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:ID_DIGITS]


def _kind(value: object) -> str:
    return KINDS.get(type(value), f"of type {type(value).__name__}")


def _listed(names: Iterable[str], conjunction: str) -> str:
    """Names for a message: some of them, when they are many."""
    *others, last = [_short(name) for name in names] or ["none"]
    if len(others) > 9:
        others, last = others[:9], f"{len(others) - 8} more"
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")
