"""The rows of docs/compatibility.md: what is tried, how a row is run and judged, and how the page is written."""

from collections.abc import Iterator

from compat import caches, callbacks, calls, machine, of_zoo, schedulers
from compat.trial import Trial


def every_trial() -> Iterator[Trial]:
    """All rows, in the order of the page."""
    yield from of_zoo.trials()
    for kinds in (caches, schedulers, callbacks, calls, machine):
        yield from kinds.trials()
