"""Makes a command's options from a dataclass, so that an option is written in one place: see `core/options.py`."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from msgspec.inspect import BoolType, FloatType, IntType

from probeselect.core.errors import UsageError
from probeselect.core.options import Field, OptionError, options_of

_KINDS: dict[type, type] = {IntType: int, FloatType: float, BoolType: bool}  # all others are text


def from_dataclass(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option --NAME for every field of the dataclass that its parameter `options` has for a type.

        @from_dataclass
        def train(folder: Path, options: TrainOptions) -> None: ...

    A list is written with commas. What the dataclass refuses is a UsageError about --NAME.
    """
    signature = inspect.signature(command, eval_str=True)
    form = signature.parameters["options"].annotation
    fields = options_of(form)

    @functools.wraps(command)
    def asked(**given: Any) -> None:
        try:
            options = form(**{field.name: _value(field, given.pop(field.name)) for field in fields})
        except OptionError as error:
            raise UsageError(re.sub(r"^\w+", lambda name: _flag(name[0]), str(error))) from error
        command(**given, options=options)

    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            parameters += [_parameter(field) for field in fields]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    asked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    asked.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return asked


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parameter(field: Field) -> inspect.Parameter:
    notes = [field.range, f"default: {field.option.unset}" if field.option.unset else ""]
    said = "; ".join(filter(None, notes))
    option = typer.Option(
        *([_flag(field.name)] if field.default is False else []),  # a switch, without its --no-NAME
        help=field.option.help + (f" ({said})" if said else ""),
        rich_help_panel=field.option.group,
        show_default=not (field.option.unset or field.default is False),
    )
    kind: Any = str if field.is_list else _KINDS.get(type(field.plain), str)
    default = field.default
    if default is None:
        kind = kind | None
    if field.is_list:
        default = ",".join(each if isinstance(each, str) else f"{each:g}" for each in default)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _value(field: Field, given: Any) -> Any:
    """What was given on the command line, as the dataclass takes it."""
    if not field.is_list:
        return given
    lists, command, rest = given.partition("exec:")  # an evaluator's command may hold commas, so it takes the rest
    *parts, last = lists.split(",")
    texts = [part.strip() for part in parts] + [last.strip() + command + rest]
    number = _KINDS.get(type(field.plain), str)
    return tuple(_read(number, text) for text in texts if text)


def _read(kind: type, text: str) -> Any:
    """The number; what is none stays text, which the dataclass refuses."""
    try:
        return kind(text)
    except ValueError:
        return text
