"""The two trees of code: a git revision and a copy of this checkout; and how a command is run with one of them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from same.commands import Command

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1800  # for a command; ten are many on a quiet machine


@dataclass(frozen=True)
class Renamed:
    """An option that has another name in older trees."""

    command: str
    new: str
    old: str


RENAMED = (Renamed("generate", "--rounds", "--waves"),)


@dataclass(frozen=True)
class Tree:
    """name: "before" or "after". source: the folder that holds the package. older: the options it has by old names."""

    name: str
    source: Path
    older: tuple[Renamed, ...] = ()

    def words(self, command: Command, made: Path) -> list[str]:
        """What follows `python -m probeselect` in this tree."""
        names = {each.new: each.old for each in self.older if each.command == command.words[0]}
        return [names.get(word, word).replace("{made}", str(made)) for word in command.words]

    def environment(self) -> dict[str, str]:
        calm = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "MPLBACKEND": "Agg"}
        return {**os.environ, **calm, "PYTHONPATH": str(self.source)}

    def start(self, words: Sequence[str], folder: Path, stdout: Path, stderr: Path) -> "subprocess.Popen[bytes]":
        """A process in `folder`; what it says goes to files."""
        with stdout.open("wb") as out, stderr.open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "probeselect", *words], cwd=folder, env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    def asked(self, *words: str) -> str:
        """What python says of some words. Raises CalledProcessError."""
        return subprocess.run(
            [sys.executable, *words], cwd=self.source, env=self.environment(), check=True, text=True,
            stdout=subprocess.PIPE,
        ).stdout  # fmt: skip


@contextmanager
def both_trees(revision: str, folder: Path) -> Iterator[tuple[Tree, Tree]]:
    """The old tree as a git worktree in `folder`, removed at the end, and a copy of this checkout's src as it is now.

    A copy, so that nobody's edits meanwhile are mixed in. Raises CalledProcessError for a revision that git lacks.
    """
    old, new = folder / "tree-before", folder / "tree-after"
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", old, revision], check=True)
    try:
        shutil.copytree(ROOT / "src", new / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        yield _known(Tree("before", old / "src")), _known(Tree("after", new / "src"))
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", old], check=True)
        shutil.rmtree(new, ignore_errors=True)


def _known(tree: Tree) -> Tree:
    """The tree with the options that it has by old names. Raises SystemExit if Python would take another package."""
    taken_from = tree.asked("-c", "import probeselect; print(probeselect.__file__)").strip()
    if not Path(taken_from).resolve().is_relative_to(tree.source.resolve()):
        raise SystemExit(f"python imports {taken_from}, not the package in {tree.source}")
    older = []
    for each in RENAMED:
        options = re.findall(r"(?<![\w-])--[\w-]+", tree.asked("-m", "probeselect", each.command, "--help"))
        if each.new not in options and each.old in options:
            older.append(each)
    return Tree(tree.name, tree.source, tuple(older))
