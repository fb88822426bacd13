"""Evaluators of other packages: entry points of the group `probeselect.evaluators`, imported only when loaded.

An entry point names a table.Row, or a callable(weights=None, *, device, dtype, batch_size) that returns a
base.Evaluator; weights is what follows "NAME=", or None, and the rest is always given, by name.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from probeselect.core.errors import ProbeSelectError, UsageError

GROUP = "probeselect.evaluators"


def plugin_names() -> dict[str, str]:
    """Return the names of all plug-ins -> whose they are, e.g. "mine:load of package-of-mine"."""
    return {name: " and ".join(map(_whose, points)) for name, points in _points().items()}


def load_plugin(name: str) -> Any:
    """Return what the entry point names.

    Raises:
        UsageError: two packages give the name.
        ProbeSelectError: it cannot be imported.
    """
    point, *others = _points()[name]
    if others:
        raise UsageError(f"evaluator {name!r} is given by {plugin_names()[name]}: uninstall all but one")
    try:
        return point.load()
    except Exception as error:  # whatever the other package's modules raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ProbeSelectError(f"plug-in {_whose(point)} cannot be imported ({reason})") from error


def _points() -> dict[str, list[EntryPoint]]:
    """Return the entry points by name; one that is found twice, as of an editable install, counts once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, {}).setdefault(_whose(point), point)
    return {name: list(points.values()) for name, points in found.items()}


def _whose(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name if point.dist else 'an unknown package'}"
