"""The one reader of JSON files: bytes, depth, types and fields are checked here, before anything is believed.

What a file may hold is a type (a dataclass or msgspec.Struct) beside the code that writes it.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from probeselect.core.errors import UsageError

MAX_BYTES = 1 << 26  # of a JSON file
WORDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
    "object": "an object", "null": "null",
}  # fmt: skip
T = TypeVar("T")


def read_json(path: Path, form: type[T], most_bytes: int = MAX_BYTES) -> T:
    """What a JSON file holds, as `form`: read_json(Path("plan.json"), PlanFile).

    Raises UsageError in one line that names the file, the field, its value and what would be right.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise UsageError(f"{path}: {size} bytes, where {most_bytes} are the most")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(data, form, str(path))


def parse_json(data: bytes, form: type[T], where: str) -> T:
    """The same of bytes; `where` opens every message."""
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_in_words(str(error), data)}") from error
    except UsageError as error:  # of a value that checks itself
        raise UsageError(f"{where}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not a readable JSON file ({error})") from error


def to_json(value: Any) -> bytes:
    """The JSON of a typed value, indented, for a file that people read; a figure that is not finite is null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _in_words(message: str, data: bytes) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.rungs[0].step`" as "rungs[0].step = 'x': must be a whole number"."""
    said, _, place = message.partition(" - at ")
    place = place.strip("`").removeprefix("$").removeprefix(".")
    expected = re.match(r"Expected `([^`]*)`, got `[^`]*`$", said)
    if not expected:
        return f"{place}: {said}" if place else said
    kinds = " or ".join(WORDS.get(kind, kind) for kind in expected[1].split(" | "))
    return f"{place} = {_value_at(data, place)}: must be {kinds}" if place else f"must hold {kinds}"


def _value_at(data: bytes, place: str) -> str:
    value: Any = msgspec.json.decode(data)
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", place):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return "?"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
