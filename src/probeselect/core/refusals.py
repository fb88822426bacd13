"""What is wrong with a JSON file, in one line: where msgspec stopped, what stands there and what would be right."""

import json
import re
from typing import Any

import msgspec
from msgspec import inspect

LONGEST = 60  # characters of a value that are shown
ELSEWHERE = re.compile(r"(.*?)(?: - at `([^`]*)`)?", re.DOTALL)
FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
OBJECTS = inspect.StructType, inspect.DataclassType, inspect.DictType
LISTS = inspect.ListType, inspect.VarTupleType, inspect.TupleType
UNKNOWN = object()  # in place of a value that cannot be found again


class _AsWritten(str):
    """A number as the file has it, whatever its size."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def in_words(error: msgspec.ValidationError, data: bytes, form: Any) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.rungs[0].step`" as "rungs[0].step = 'x': must be a whole number".

    data: the bytes in which the error was found. form: the type that they were to have.
    """
    message = str(error)
    if error.__cause__ is not None:  # of a value that checks itself
        said = str(error.__cause__)
        place = message.removeprefix(said).removeprefix(" - at ").strip("`")
    else:
        found = ELSEWHERE.fullmatch(message)
        said, place = (found[1], found[2] or "") if found else (message, "")
    steps = [name or index for name, index in re.findall(r"([^.\[\]$]+)|\[(\d+|\.\.\.)\]", place)]
    kind, value, place = _follow(inspect.type_info(form), _loosely(data), steps)
    before = f"{place}: " if place else ""
    if error.__cause__ is not None:
        return before + said
    if field := FIELD.fullmatch(said):
        return before + ("has no field " if field[1] == "missing required" else "unknown field ") + _shown(field[2])
    if kind is None:  # of a newer msgspec, perhaps
        return before + said
    if not place:
        return f"must hold {_wanted(kind)}"
    return f"{place}{'' if value is UNKNOWN else f' = {_shown(value)}'}: must be {_wanted(kind)}"


def _shown(value: Any) -> str:
    """A value of a file, short, and with nothing in it that a terminal would obey."""
    text = {True: "true", False: "false", None: "null"}[value] if value in (True, False, None) else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _loosely(data: bytes) -> Any:
    """What a file holds, its numbers as they are written: to show a value that has no place in a number of Python's."""
    try:
        return json.loads(data, parse_int=_AsWritten, parse_float=_AsWritten, parse_constant=_AsWritten)
    except (ValueError, RecursionError):  # msgspec has stopped before what is wrong here
        return UNKNOWN


def _follow(kind: inspect.Type | None, value: Any, steps: list[str]) -> tuple[inspect.Type | None, Any, str]:
    """The type that a form has at a place, what stands there, and the place in words."""
    place = ""
    for step in steps:
        kind = _inside(kind, step)
        if step == "...":  # msgspec does not say which of an object whose names are free
            fields = value.items() if isinstance(value, dict) else ()
            step = next((name for name, each in fields if not _suits(kind, each)), step)
            place += f"[{_shown(step)}]" if step != "..." else "[...]"
        else:
            place += f"[{step}]" if step.isdigit() else f".{step}" if place else step
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (LookupError, TypeError, ValueError):
            value = UNKNOWN
    return kind, value, place


def _inside(kind: inspect.Type | None, step: str) -> inspect.Type | None:
    """The type of a field or of an item; None where the type has no such thing."""
    if isinstance(kind, inspect.UnionType):
        return next((inner for each in kind.types if (inner := _inside(each, step)) is not None), None)
    if isinstance(kind, inspect.StructType | inspect.DataclassType):
        return next((field.type for field in kind.fields if field.encode_name == step), None)
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return kind.item_type
    return kind.item_types[int(step)] if isinstance(kind, inspect.TupleType) else None


def _suits(kind: inspect.Type | None, value: Any) -> bool:
    """Whether a value is of a kind at all, whatever its size."""
    if isinstance(kind, inspect.UnionType):
        return any(_suits(each, value) for each in kind.types)
    if isinstance(value, dict | list):
        return isinstance(kind, OBJECTS if isinstance(value, dict) else LISTS)
    if value is None or isinstance(value, bool):
        return isinstance(kind, inspect.NoneType if value is None else inspect.BoolType)
    number = isinstance(kind, inspect.IntType | inspect.FloatType)
    return number if isinstance(value, _AsWritten) else isinstance(kind, inspect.StrType | inspect.LiteralType)


def bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    """The range of a number in words: "above 0 and below 1"; empty where there is none."""
    ends = (("above", kind.gt), ("from", kind.ge), ("below", kind.lt), ("to", kind.le))
    limits = " ".join(f"{word} {limit:.12g}" for word, limit in ends if limit is not None)
    multiple = "" if kind.multiple_of is None else f", a multiple of {kind.multiple_of}"
    return limits.replace(" below", " and below") + multiple


def _wanted(kind: inspect.Type) -> str:
    """A type in words."""
    match kind:
        case inspect.UnionType():
            *words, last = map(_wanted, kind.types)
            return f"{', '.join(words)} or {last}"
        case inspect.LiteralType():
            return " or ".join(map(repr, kind.values))
        case inspect.IntType() | inspect.FloatType():
            name = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return f"{name} {bounds(kind)}".strip().replace(" ,", ",")
        case inspect.ListType() | inspect.VarTupleType():
            lengths = (("at least", kind.min_length), ("at most", kind.max_length))
            sizes = " and ".join(f"{word} {size}" for word, size in lengths if size is not None)
            return f"a list of {sizes}" if sizes else "a list"
        case inspect.TupleType():
            return f"a list of {len(kind.item_types)}"
        case inspect.StrType():
            return "text" if kind.max_length is None else f"text of at most {kind.max_length} characters"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
    return "an object"
