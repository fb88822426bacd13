"""Kills collections at every moment that matters and checks that what comes out in the end is the same, byte for byte.

    python tests/kill_harness.py --kills 10000

The stub backbone is numpy, so a run takes some hundredths of a second; every run is a fork of this process. A run is
killed by itself just before (or halfway through) a planted write, fsync, rename, mkdir or unlink. Then it is run again,
killed again, and run to its end. The tests do so at every one of these moments, once. From the command line there are
as many kills as are asked for: those, and then more of them at random, by turns with a signal at a random time.
"""

import argparse
import faulthandler
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset  # noqa: F401  or every fork would import it when it reads a table, which takes longer than its run
from PIL import Image
from stub_config import dataset_config

from probeselect.collect.loop import collect
from probeselect.collect.score import score
from probeselect.data.dataset import Dataset, pin
from probeselect.data.prompts import Prompt
from probeselect.data.shards import OK, Content, encode_image, image_name, seeds_of

N, GROUPS_PER_SHARD, RUNGS = 2, 2, (0.2, 0.4)
PROMPTS = [Prompt(str(i), f"prompt {i}") for i in range(5)]
FEW = PROMPTS[:3]  # a whole shard and half of one: what is killed again and again
KILLED = 137
PATIENCE_SECONDS = 120  # for a fork, which takes some seconds at most
HALVED = "write"  # the one operation that can be done by halves
Image.preinit()  # or every fork would


def stub_make(prompts: Sequence[Prompt]) -> Content:
    """What a backbone would make of these prompts, were it a random generator started by the seed."""
    rows, images, maps = [], {}, []
    for prompt in prompts:
        for index, seed in enumerate(seeds_of("", prompt.id, N)):
            draw = np.random.default_rng(seed)
            name = image_name(prompt.id, index, "png")
            images[name] = encode_image(Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)), "png")
            maps.append(draw.standard_normal((2, 3, 3)).astype(np.float16))
            rows.append({"prompt_id": prompt.id, "prompt": prompt.text, "index": index, "seed": seed, "image": name,
                         "status": OK, "error": ""})  # fmt: skip
    groups = (len(prompts), N)
    tensors = {f"map/tap/{rung:g}": np.stack(maps).reshape(*groups, 2, 3, 3) for rung in RUNGS}
    tensors |= {"seeds": np.array([row["seed"] for row in rows]).reshape(groups), "valid": np.ones(groups, dtype=bool)}
    return Content(tensors, rows, images)


class StubEvaluator:
    """Rewards the mean of the picture."""

    name = "stub"

    def features(self, images: Sequence[Image.Image]) -> Any:
        return np.stack([np.asarray(image).reshape(-1)[:4] for image in images]).astype(np.float32)

    def score(self, features: Any, prompts: Sequence[str]) -> Any:
        return features.mean(1)


def stub_collection(folder: Path, prompts: Sequence[Prompt] = PROMPTS) -> None:
    """A whole collection: generate, score."""
    dataset = pin(folder, dataset_config(len(prompts), n=N, rungs=RUNGS, groups_per_shard=GROUPS_PER_SHARD))
    for _ in collect(dataset, prompts, stub_make):
        pass
    for _ in score(dataset, StubEvaluator()):
        pass


def tree_hash(folder: Path) -> str:
    """Digest of every name and byte in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


OPERATIONS = ("write", "fsync", "rename", "mkdir", "unlink")


def plant(at: int, act: Callable[[str, Any], None], done: float = 0.5, only: Sequence[str] = OPERATIONS) -> list[str]:
    """Let operation number `at` (from 0, of those in `only`) of this process do `act(name, first argument)`.

    done: how much of the operation comes first: 0 nothing, 0.5 half of it where it is a write, 1 all of it.
    Returns the list in which every operation is noted.
    """
    seen: list[str] = []

    def around(name: str) -> None:
        usual = getattr(os, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) - 1 != at:
                return usual(*args, **kwargs)
            if done == 0.5 and name == HALVED:
                usual(args[0], bytes(args[1])[: len(args[1]) // 2])
            if done < 1:
                act(name, args[0])
                return usual(*args, **kwargs)
            result = usual(*args, **kwargs)
            act(name, args[0])
            return result

        setattr(os, name, operation)

    for name in only:
        around(name)
    return seen


def forked(task: Callable[[], None]) -> int:
    """Start `task` in a fork; returns its process id. The fork ends with 0, or 1 and its error on stderr."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        faulthandler.dump_traceback_later(PATIENCE_SECONDS)
        task()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a fork; its exit code, or 137 when a signal ended it. Raises AssertionError for one that hangs."""
    deadline = time.monotonic() + PATIENCE_SECONDS + 5  # by then it has said on stderr where it is
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"a fork has not ended after {PATIENCE_SECONDS} s")
        time.sleep(0.001)
    return KILLED if os.WIFSIGNALED(found[1]) else os.WEXITSTATUS(found[1])


def killed_at(operation: int, task: Callable[[], None], done: float = 0.5, only: Sequence[str] = OPERATIONS) -> bool:
    """Run `task` in a fork that dies at an operation, see `plant`; False when it came to its end before."""

    def planted() -> None:
        plant(operation, lambda *_: os.kill(os.getpid(), signal.SIGKILL), done, only)
        task()

    return _was_killed(ended(forked(planted)))


def killed_putting(name: str, moment: str, task: Callable[[], None]) -> bool:
    """Run `task` in a fork that dies when a file is put in its place; False when it came to its end before.

    name: the file's. moment: when "half" of it is there under another name, the "whole" of it, or when it is "named".
    """

    def planted() -> None:
        usual = os.rename

        def rename(source: Any, target: Any) -> None:
            if Path(target).name != name:
                return usual(source, target)
            if moment == "half":
                os.truncate(source, os.stat(source).st_size // 2)
            if moment == "named":
                usual(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename
        task()

    return _was_killed(ended(forked(planted)))


def killed_after(seconds: float, task: Callable[[], None]) -> bool:
    """Run `task` in a fork and kill it after a time; False when it came to its end before."""
    pid = forked(task)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return _was_killed(ended(pid))


def _was_killed(code: int) -> bool:
    if code not in (0, KILLED):
        raise AssertionError(f"a run ended with {code}; its error is on stderr")
    return code == KILLED


@dataclass(frozen=True)
class Outcome:
    """One dataset that came to its end after some kills."""

    kills: int
    hash: str


def killed_again_and_again(
    folder: Path, task: Callable[[], None], rng: random.Random, operations: int, seconds: float
) -> Outcome:
    """Kill runs on one folder, by turns at planted operations and at random times, until one comes to its end."""
    kills = 0
    while True:
        if rng.random() < 0.5:
            killed = killed_at(rng.randrange(operations), task)
        else:
            killed = killed_after(rng.uniform(0, seconds), task)
        if not killed:
            return Outcome(kills, tree_hash(folder))
        kills += 1


def killed_at_every_moment(root: Path, seed: int = 0) -> Iterator[Outcome]:
    """Yield outcomes on the stub: for every moment of a run one that is killed then, and again at another moment."""
    names, folder, rng = operations_of(root / "count", root), root / "dataset", random.Random(seed)
    task = partial(stub_collection, folder, FEW)
    for at, name in enumerate(names):
        for done in (0, 0.5) if name == HALVED else (0,):
            shutil.rmtree(folder, ignore_errors=True)
            assert killed_at(at, task, done), f"operation {at} was never reached"
            again = killed_at(rng.randrange(len(names) // 2), task, rng.choice((0, 0.5)))
            if again:
                assert ended(forked(task)) == 0
            yield Outcome(1 + again, tree_hash(folder))


def run(kills: int, root: Path, seed: int = 0) -> Iterator[Outcome]:
    """Yield outcomes on the stub until there were so many kills: first those at every moment, then at random."""
    done = 0
    for outcome in killed_at_every_moment(root, seed):
        done += outcome.kills
        yield outcome
    folder, rng = root / "dataset", random.Random(seed)
    task = partial(stub_collection, folder, FEW)
    shutil.rmtree(folder)
    began = time.monotonic()
    operations = len(operations_of(folder, root))
    seconds = time.monotonic() - began
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        outcome = killed_again_and_again(folder, task, rng, operations // 3, seconds / 2)
        done += outcome.kills
        yield outcome


def operations_of(folder: Path, root: Path) -> list[str]:
    """The operations of an undisturbed collection of FEW, by name."""
    note = root / "operations"

    def counted() -> None:
        seen = plant(-1, lambda *_: None)
        stub_collection(folder, FEW)
        note.write_text("\n".join(seen))

    assert ended(forked(counted)) == 0
    return note.read_text().split()


def reference(root: Path, prompts: Sequence[Prompt] = PROMPTS) -> str:
    """The tree hash of a collection that nobody disturbed."""
    assert ended(forked(lambda: stub_collection(root / "reference", prompts))) == 0
    return tree_hash(root / "reference")


def check_each_group_once(folder: Path, prompts: Sequence[Prompt] = PROMPTS) -> None:
    """Raises AssertionError unless every prompt is there with all its candidates, once."""
    dataset = Dataset(folder)
    rows = [row for index in dataset.done() for row in dataset.rows(index).to_pylist()]
    assert [(row["prompt_id"], row["index"]) for row in rows] == [(p.id, i) for p in prompts for i in range(N)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        expected, kills, datasets = reference(Path(name), FEW), 0, 0
        began = time.monotonic()
        for outcome in run(options.kills, Path(name), options.seed):
            kills, datasets = kills + outcome.kills, datasets + 1
            if outcome.hash != expected:
                sys.exit(f"after {kills} kills: dataset {datasets} differs from the undisturbed one")
            if datasets % 100 == 0:
                rate = kills / (time.monotonic() - began)
                left = max(0, options.kills - kills) / rate
                print(f"{kills} kills, {datasets} datasets, {rate:.0f} kills/s, {left:.0f} s left", file=sys.stderr)
    print(f"{kills} kills, {datasets} datasets, all identical to the undisturbed one")


if __name__ == "__main__":
    main()
