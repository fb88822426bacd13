"""The one reader of JSON files: bytes, depth, types, counts and fields are checked here, before anything is believed.

What a file may hold is a type (a msgspec.Struct or a dataclass) beside the code that writes it.
"""

import json
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from probeselect.core.errors import UsageError
from probeselect.core.refusals import in_words

MAX_BYTES = 1 << 26  # of a JSON file
T = TypeVar("T")


class _Numbered(msgspec.Struct):
    """A file that says which format it has."""

    format: int


def read_json(path: Path, form: type[T], most_bytes: int = MAX_BYTES, format: int | None = None) -> T:
    """What a JSON file holds, as `form`: read_json(Path("plan.json"), PlanFile, format=1).

    format: the number that its field `format` must have. It is looked at first, so that a newer file is refused as
    such and not by the first field that is new.

    Raises UsageError in one line that names the file, the field, its value and what would be right.
    """
    try:
        data = read_bytes(path, most_bytes)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(data, form, str(path), format)


def read_bytes(path: Path, most_bytes: int = MAX_BYTES) -> bytes:
    """All of a file. Raises UsageError for one that is too large or no file, and OSError where the disk refuses."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
        raise UsageError(f"{path}: is not a file")
    if found.st_size > most_bytes:
        raise UsageError(f"{path}: {found.st_size} bytes, where {most_bytes} are the most")
    return path.read_bytes()


def parse_json(data: bytes, form: type[T], where: str, format: int | None = None) -> T:
    """The same of bytes; `where` opens every message."""
    try:
        if format is not None and (found := _decoded(data, _Numbered).format) != format:
            raise UsageError(f"format = {str(found)[:20]}: this version reads format {format}")
        value = _decoded(data, form)
        json.loads(data, object_pairs_hook=_each_once, parse_int=len)  # an integer may have too many digits for int()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not a readable JSON file ({error})") from error
    return value


def _decoded(data: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise UsageError(in_words(error, data, form)) from error


def checked(value: T, where: str) -> T:
    """A value made here as a file would give it back: types, bounds and lengths are looked at as those of a file are.

    Raises UsageError that opens with `where`.
    """
    try:
        data = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: cannot be written ({error})") from error
    return parse_json(data, type(value), where)


def to_json(value: Any) -> bytes:
    """The JSON of a typed value, indented, for a file that people read; a figure that is not finite is null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object with a field twice: of two readers, each might believe another one."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UsageError(f"field {next(name for name in names if names.count(name) > 1)[:60]!r}: is given twice")
