"""Shows that a refactoring changed nothing for users but what is said.

    python benchmarks/same_as_before.py --before REVISION [--tables FOLDER] [--only NAME]... [--keep FOLDER]

Runs the same commands with two trees of code, a git revision and this checkout as it is now, each in a fresh folder,
and compares all that they wrote: JSON field by field, pictures pixel by pixel, tensors and tables by content. Prints a
line a command, `same` or what differs. Exits 1 if anything differs that `same/allowed.py` does not say is meant. New
fields and files are told, and are no fault; words for people (stdout without --json, stderr, HTML, Markdown) are not
compared. The commands are rows in `same/commands.py`; with those that --only names come those whose files they need.
About ten minutes on two quiet cores.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from same.allowed import ALLOWED
from same.commands import chosen, commands
from same.made import make_table
from same.running import Compared, Runner
from same.trees import ROOT, both_trees

TABLES = ROOT.parent / "shared" / "data" / "real-scores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REVISION", help="git revision to compare with")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of .npz score tables; none: left out")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="commands whose name holds this; may come often"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where all that is written is kept")
    given = parser.parse_args()
    tables = sorted(given.tables.resolve().glob("*.npz"))
    if not tables:
        print(f"no score tables in {given.tables}: plans of real scores are left out", file=sys.stderr)
    rows = chosen(commands(tables), given.only or [""])
    if not rows:
        parser.error(f"--only {', '.join(given.only)}: no command's name holds that")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    began = time.perf_counter()
    found: list[Compared] = []
    with _folder(given.keep) as folder, both_trees(given.before, folder) as (before, after):
        make_table(folder / "scores.npz")
        runner = Runner(before, after, folder, made=folder)
        for row in rows:
            found.append(runner.compare(row))
            print("\n".join(found[-1].lines()), flush=True)
    sys.exit(_summary(found, time.perf_counter() - began))


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="same-as-before-") as folder:
        yield Path(folder).resolve()


def _summary(found: list[Compared], seconds: float) -> int:
    """Say how it went; return the exit code."""
    unlike = [each.command.name for each in found if each.faults]
    reasons = {reason for each in found for reason in each.allowed}
    for reason in dict.fromkeys(row.reason for row in ALLOWED):
        if reason not in reasons:
            print(f"not seen, though it is allowed: {reason}")
    verdict = f"{len(unlike)} DIFFER: {', '.join(unlike)}" if unlike else "all the same"
    cpu = sum(os.times()[2:4])  # of the processes that were waited for
    print(f"{len(found)} commands in {seconds:.0f} s, {cpu:.0f} s of CPU time: {verdict}")
    return 1 if unlike else 0


if __name__ == "__main__":
    main()
