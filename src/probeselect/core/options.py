"""Options as fields of a frozen dataclass: type with its range, default, help text and group, each written once.

    @dataclass(frozen=True)
    class Settings:
        epochs: Annotated[int, Meta(ge=1), Option("maximum number of epochs", "Training")] = 10

        def __post_init__(self) -> None:
            check(self)

`check` refuses a wrong value from whoever gave it; `commands/from_dataclass.py` makes the command line of the same
fields; msgspec and `dataclasses.asdict` write them to files.
"""

from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import inspect

from probeselect.core.errors import UsageError
from probeselect.core.refusals import bounds, in_words


class OptionError(UsageError):
    """An option has a value that it cannot have; the message opens with the field's name."""


@dataclass(frozen=True)
class Option:
    """What a field says of itself, as `Annotated[type, Option(...)]`."""

    help: str
    group: str  # heading under which the command line lists it
    unset: str = ""  # what is done without it, where the default value does not say so


@dataclass(frozen=True)
class Field:
    """One option of a dataclass. `kind`: number, text, bool or Literal, with its range; a tuple of these, or None."""

    name: str
    kind: Any
    default: Any
    option: Option

    @property
    def is_list(self) -> bool:
        return isinstance(inspect.type_info(self.kind), inspect.VarTupleType | inspect.TupleType)

    @property
    def plain(self) -> inspect.Type:
        """The type of its value: of a list, that of an item; of one that may be None, the other one."""
        match inspect.type_info(self.kind):
            case inspect.VarTupleType(item_type=item):
                return item
            case inspect.TupleType(item_types=items):
                return items[0]
            case inspect.UnionType(types=types):
                return next(each for each in types if not isinstance(each, inspect.NoneType))
            case other:
                return other

    @property
    def range(self) -> str:
        """What the value may be, in words: "above 0 and below 1", "a, b or c"; empty where there is no limit."""
        if isinstance(self.plain, inspect.LiteralType):
            *names, last = get_args(get_args(self.kind)[0])  # in the order in which they are written
            return f"{', '.join(names)} or {last}"
        return bounds(self.plain) if isinstance(self.plain, inspect.IntType | inspect.FloatType) else ""


def options_of(form: type[Any]) -> tuple[Field, ...]:
    """The options of a dataclass in their order; a field without an `Option` is none."""
    hints = get_type_hints(form, include_extras=True)
    return tuple(
        Field(field.name, hints[field.name], field.default, said)
        for field in fields(form)
        for said in getattr(hints[field.name], "__metadata__", ())
        if isinstance(said, Option)
    )


def check(options: Any) -> None:
    """For `__post_init__` of a frozen dataclass: make every value what JSON would give back (1 is 1.0, a list a tuple).

    Raises OptionError for the first one that an option cannot have.
    """
    described = options_of(type(options))
    form = msgspec.defstruct("Options", [(field.name, field.kind) for field in described])
    given = {field.name: getattr(options, field.name) for field in described}
    data = msgspec.json.encode(given, enc_hook=_of_numpy)
    try:
        found = msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise OptionError(in_words(error, data, form)) from error
    for name in given:
        object.__setattr__(options, name, getattr(found, name))


def changed(options: Any) -> str:
    """Python that makes this dataclass again: of its options, those that differ from their defaults."""
    values = {field.name: getattr(options, field.name) for field in options_of(type(options))}
    usual = {field.name: field.default for field in options_of(type(options))}
    given = ", ".join(f"{name}={value!r}" for name, value in values.items() if value != usual[name])
    return f"{type(options).__name__}({given})"


def _of_numpy(value: Any) -> Any:
    """The plain number or list of numpy's and torch's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise UsageError(f"{value!r}: is no number, text or list")
