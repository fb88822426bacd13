"""A progress bar in steps, with rate and time left, on stderr."""

import sys
from typing import Any

from tqdm.auto import tqdm


class StepsBar:
    """Shows what `progress` is told: `with StepsBar() as bar: sampler(..., progress=bar.update)`.

    Silent where stderr is neither a terminal nor a notebook.
    """

    def __init__(self) -> None:
        shown = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar: Any = tqdm(unit=" steps", file=sys.stderr, disable=not shown, leave=False)

    def __enter__(self) -> "StepsBar":
        return self

    def update(self, done: int, planned: int) -> None:
        """`done` of `planned` steps; what is planned falls when candidates are stopped."""
        self.bar.total = planned
        self.bar.update(done - self.bar.n)

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
