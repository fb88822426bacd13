"""Tries SelectiveSampler on every stock pipeline class that a tiny model can be built for, and writes what came out.

    python benchmarks/compatibility.py                                  # docs/compatibility.md, some 40 minutes
    python benchmarks/compatibility.py --only "SD3 | " --out /dev/null  # rows whose name holds this

Every kept picture is compared with the stock pipeline's of that seed. Exits with 1 when a row has none of the four
outcomes that the page explains; such a row is printed and not written.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of tiny operations wait for each other without end
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from compat import every_trial  # noqa: E402
from compat.page import page  # noqa: E402
from compat.trial import OUTCOMES, Row, Trial, run  # noqa: E402

TRIALS: list[Trial] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="text in the name 'class | kind' of a row; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "compatibility.md")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--rows", type=Path, help="a JSONL file of rows: good ones found there are not tried again")
    parser.add_argument("--page-only", action="store_true", help="write the page from --rows, and try nothing")
    parser.add_argument("--list", action="store_true", help="names of the rows, and no more")
    given = parser.parse_args()
    began = time.perf_counter()
    TRIALS[:] = [t for t in every_trial() if not given.only or any(text in t.name for text in given.only)]
    if given.list:
        print("\n".join(trial.name for trial in TRIALS))
        return
    known = _known(given.rows)
    names = {trial.name for trial in TRIALS}
    rows = [row for name, row in known.items() if name in names]
    left = [] if given.page_only else [i for i, trial in enumerate(TRIALS) if trial.name not in known]
    print(f"{len(left)} rows to try, {len(rows)} known", flush=True)
    for row in _tried(left, given.jobs):
        rows.append(row)
        print(row.line(), flush=True)
        if given.rows:
            with given.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    wrong = [row for row in rows if row.outcome not in OUTCOMES]
    order = {trial.name: i for i, trial in enumerate(TRIALS)}
    good = sorted((row for row in rows if row.outcome in OUTCOMES), key=lambda row: order[row.name])
    print(dict(Counter(row.outcome for row in rows)), f"in {time.perf_counter() - began:.0f} s")
    for row in wrong:
        print("!!! " + row.line())
    given.out.write_text(page(good))
    sys.exit(1 if wrong else 0)


def _known(file: Path | None) -> dict[str, Row]:
    if file is None or not file.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()]
    return {row.name: row for row in rows if row.outcome in OUTCOMES}


def _tried(indices: Sequence[int], jobs: int) -> Iterator[Row]:
    if jobs < 2:
        yield from map(_try, indices)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_try, indices, chunksize=4)


def _try(index: int) -> Row:
    return run(TRIALS[index])


if __name__ == "__main__":
    main()
