"""Collects shards until all are there, however often it is killed and however many do it at once.

Knows which shard is whose turn; does not know how one is made (`collect/maker.py`), nor torch. Rerun = resume:
every shard that is there is read through, what is damaged is set aside and made again, what is missing is made.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from probeselect.core.errors import UsageError
from probeselect.data.dataset import Dataset, set_aside
from probeselect.data.prompts import Prompt
from probeselect.data.sealed import DamagedError, verify
from probeselect.data.shards import Content, write_shard

POLL_SECONDS = 0.5  # how often a collector that has nothing left to do looks whether the others are done
Maker = Callable[[Sequence[Prompt]], Content]


@dataclass(frozen=True)
class Progress:
    """One shard more is there: found whole, made here, or made by another collector meanwhile."""

    shard: int
    groups: int
    how: Literal["found", "made", "elsewhere"]
    damage: str = ""  # what was wrong with the one that was set aside


def parse_part(text: str) -> tuple[int, int]:
    """ "i/n" -> (i - 1, n): the i-th of n parts, counted from 1. Raises UsageError."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UsageError(f"--part {text!r}: write i/n with i from 1 to n, like 3/8")
    return int(i) - 1, int(n)


def collect(
    dataset: Dataset, prompts: Sequence[Prompt], make: Maker, part: tuple[int, int] = (0, 1)
) -> Iterator[Progress]:
    """Yield every shard of this part once it is there, whoever makes it. Ends when all are.

    Args:
        prompts: those of the dataset's configuration, in its order.
        make: called with the prompts of one shard.
        part: (i, n) takes the shards whose index is i modulo n.

    Raises what `make` raises, and OSError naming the path when the disk refuses; shards before it stay.
    """
    waiting = list(range(part[0], dataset.shard_count, part[1]))
    first_look = set(dataset.done())
    while waiting:
        left = []
        for index in waiting:
            progress = collect_shard(dataset, prompts, make, index)
            if progress is None:
                left.append(index)
            elif progress.how == "found" and index not in first_look:
                yield replace(progress, how="elsewhere")
            else:
                yield progress
        if waiting := left:
            time.sleep(POLL_SECONDS)
    dataset.leases.sweep()


def collect_shard(dataset: Dataset, prompts: Sequence[Prompt], make: Maker, index: int) -> Progress | None:
    """See to it that one shard is there, whole. None while another process is at it."""
    folder, groups = dataset.shard(index), dataset.groups_of(index)
    if (damage := _damage(folder)) is None:
        return Progress(index, groups, "found")
    first = index * dataset.config.groups_per_shard
    with dataset.leases.taken(folder.name) as ours:
        if not ours:
            return None
        if (damage_now := _damage(folder)) is None:  # somebody was quicker
            return Progress(index, groups, "elsewhere")
        if damage_now:
            set_aside(folder, dataset.folder)
        made = write_shard(folder, make(prompts[first : first + groups]))
        return Progress(index, groups, "made" if made else "elsewhere", damage)


def _damage(folder: Path) -> str | None:
    """What is wrong with a shard: "" when there is none, None when it is whole."""
    if not folder.is_dir():
        return ""
    try:
        verify(folder)
    except DamagedError as error:
        return str(error)
    return None
