"""The commands of the program: `@command(panel)` on a function in any module of this package makes one of it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

PANELS = ("Pictures", "Probes", "Schedules", "About")  # of `--help`, in this order
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Command:
    """A function whose signature typer reads, and the panel of `--help` that it stands in."""

    function: Callable[..., Any]
    panel: str


_COMMANDS: list[Command] = []


def command(panel: str) -> Callable[[Function], Function]:
    """Register a function as the command of its name."""

    def register(function: Function) -> Function:
        _COMMANDS.append(Command(function, panel))
        return function

    return register


def commands(package: str) -> list[Command]:
    """All commands of a package's modules, panel by panel."""
    for module in sorted(iter_modules(import_module(package).__path__), key=lambda module: module.name):
        import_module(f"{package}.{module.name}")
    return sorted(_COMMANDS, key=lambda each: PANELS.index(each.panel))
