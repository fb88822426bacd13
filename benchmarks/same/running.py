"""Runs a command with both trees at the same time, each in a fresh folder, and compares what they wrote."""

import hashlib
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from same.allowed import TAKEN, WORDS, reason_for
from same.commands import Command
from same.differences import Difference, Reader, compare_files
from same.trees import SECONDS, Tree

SHOWN = 5  # differences of a command


@dataclass(frozen=True)
class Ran:
    """A command in one tree. given: digests of the files that lay in its folder before it ran, by name."""

    folder: Path
    said: Path  # standard error
    code: int | None  # None: it took too long
    given: dict[str, str]

    def names(self) -> set[str]:
        """Of all files in the folder."""
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}

    def untouched(self, name: str) -> bool:
        path = self.folder / name
        return name in self.given and path.is_file() and _digest(path) == self.given[name]


@dataclass
class Compared:
    """What differs between the trees after one command."""

    command: Command
    seconds: float
    faults: list[Difference] = field(default_factory=list)
    told: list[Difference] = field(default_factory=list)  # no faults: new fields, a few pixels
    allowed: Counter[str] = field(default_factory=Counter)  # how many, by reason

    def lines(self) -> Iterator[str]:
        """One line, and one more for each of the first few faults."""
        told = [f"{count} allowed ({reason})" for reason, count in self.allowed.items()]
        told += [str(each) for each in self.told[:SHOWN]]
        told += [f"{len(self.told) - SHOWN} more that are new"] if len(self.told) > SHOWN else []
        verdict = f"{len(self.faults)} DIFFERENCES" if self.faults else "same"
        yield f"{self.seconds:5.0f} s  {self.command.name}: {'; '.join([verdict, *told])}"
        for each in self.faults[:SHOWN]:
            yield f"           {each}"


class Runner:
    """Runs commands in turn below `folder`; a command finds there what the earlier ones wrote."""

    def __init__(self, before: Tree, after: Tree, folder: Path, made: Path) -> None:
        """made: the folder of files that commands are given by name."""
        self.trees, self.folder, self.made = (before, after), folder, made

    def compare(self, command: Command) -> Compared:
        """Run a command with both trees and compare."""
        began = time.perf_counter()
        before, after = self._run(command)
        found = Compared(command, time.perf_counter() - began)
        for difference in self._differences(command, before, after):
            if reason := reason_for(command.name, difference):
                found.allowed[reason] += 1
            else:
                (found.faults if difference.fault else found.told).append(difference)
        return found

    def _run(self, command: Command) -> tuple[Ran, Ran]:
        prepared = [self._prepared(command, tree) for tree in self.trees]
        processes = [
            tree.start(tree.words(command, self.made), folder, self._stdout(command, folder), self._stderr(folder))
            for tree, (folder, _) in zip(self.trees, prepared, strict=True)
        ]
        codes: list[int | None] = []
        try:
            for process in processes:
                try:
                    codes.append(process.wait(SECONDS))
                except subprocess.TimeoutExpired:
                    codes.append(None)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        before, after = (
            Ran(folder, self._stderr(folder), code, given)
            for (folder, given), code in zip(prepared, codes, strict=True)
        )
        return before, after

    def _prepared(self, command: Command, tree: Tree) -> tuple[Path, dict[str, str]]:
        """A fresh folder with what earlier commands wrote, and the digests of that."""
        folder = self._of(command.name, tree.name)
        if folder.parent.exists():
            shutil.rmtree(folder.parent)
        folder.mkdir(parents=True)
        for name in command.given:
            shutil.copytree(self._of(name, "before" if command.from_before else tree.name), folder, dirs_exist_ok=True)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return folder, {path.relative_to(folder).as_posix(): _digest(path) for path in files}

    def _of(self, command: str, tree: str) -> Path:
        """The folder that a command runs in."""
        return self.folder / tree / "".join(c if c.isalnum() else "-" for c in command) / "files"

    def _stdout(self, command: Command, folder: Path) -> Path:
        return folder / command.stdout if command.stdout else folder.parent / "stdout.txt"

    def _stderr(self, folder: Path) -> Path:
        return folder.parent / "stderr.txt"

    def _differences(self, command: Command, before: Ran, after: Ran) -> Iterator[Difference]:
        for side, ran in (("before", before), ("after", after)):
            if ran.code != command.code:
                last = ran.said.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["nothing was said"]
                told = f"took over {SECONDS} s" if ran.code is None else f"exit code {ran.code}: {last[0]}"
                yield Difference(f"run {side}", "", "changed", f"exit code {command.code} was expected", told)
        old, new = before.names(), after.names()
        for name in sorted(old - new):
            yield Difference(name, "", "gone")
        for name in sorted(new - old):
            yield Difference(name, "", "new")
        readers = tuple(self._reader(tree) for tree in self.trees)
        for name in sorted(old & new):
            if name.endswith(WORDS) or (before.untouched(name) and after.untouched(name)):
                continue
            try:
                yield from compare_files(name, before.folder / name, after.folder / name, readers, TAKEN)
            except Exception as error:  # whatever a reader of a broken file raises
                yield Difference(name, "", "changed", "readable", f"{type(error).__name__}: {error}")

    def _reader(self, tree: Tree) -> Reader:
        return Reader({str(tree.source): "SOURCE", str(self.folder / tree.name): "FOLDER"})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
