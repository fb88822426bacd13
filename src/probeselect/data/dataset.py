"""A dataset: the folder that `collect` fills and `train` reads; its pinned configuration, shards and scores.

dataset.json        what defines the data; a run with another configuration is refused
shards/, scores/    see shards.py
leases/             who is at work on what; gone when all is done
damaged/            shards whose bytes had changed, set aside
summary.json, summary.png
"""

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import safe_open

from probeselect.core.errors import UsageError
from probeselect.data.leases import Leases
from probeselect.data.sealed import canonical_json, sweep, write_file
from probeselect.data.shards import FEATURES, OK, ROWS_FILE, TENSORS, read_rows, shard_name

CONFIG = "dataset.json"
FORMAT = 1
FREE_TO_DIFFER = ("model",)  # a folder may lie elsewhere on another machine; `weights` tells whether it is the same


@dataclass(frozen=True)
class Table:
    """Groups in memory: their prompts, and numpy arrays or tensors [G, ...] named as in shards.py, and besides

    reward/EVALUATOR [G, N] fp32, preview/EVALUATOR/RUNG [G, N] fp32, features/EVALUATOR [G, N, ...] fp16.
    """

    prompts: list[str]
    tensors: dict[str, Any]


class Dataset:
    """Opens a dataset for reading. Raises UsageError when the folder holds none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self._open: dict[Path, Any] = {}

    @property
    def n(self) -> int:
        return int(self.config["n"])

    @property
    def rungs(self) -> tuple[float, ...]:
        return tuple(self.config["rungs"])

    @property
    def shard_count(self) -> int:
        """Of all shards, done or not."""
        return int(-(-self.config["prompts"]["count"] // self.config["groups_per_shard"]))

    @property
    def leases(self) -> Leases:
        return Leases(self.folder / "leases")

    def shard(self, index: int) -> Path:
        return self.folder / "shards" / shard_name(index)

    def scores(self, evaluator: str, index: int) -> Path:
        return self.folder / "scores" / evaluator / shard_name(index)

    def done(self) -> list[int]:
        """Indices of the shards that are there."""
        return [index for index in range(self.shard_count) if self.shard(index).is_dir()]

    @cached_property
    def evaluators(self) -> tuple[str, ...]:
        """Names of the evaluators with scores."""
        return tuple(sorted(path.name for path in (self.folder / "scores").glob("*") if path.is_dir()))

    def groups_of(self, index: int) -> int:
        """How many groups a shard holds."""
        size: int = self.config["groups_per_shard"]
        return min(size, self.config["prompts"]["count"] - index * size)

    def group(self, index: int, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """The tensors [N, ...] (`prompt` [D]) of one group by its place among the prompts, read without the others.

        Raises UsageError when its shard is not there, or holds no such tensor.
        """
        shard, row = divmod(index, self.config["groups_per_shard"])
        file = self._file(self.shard(shard) / TENSORS)
        held = set(file.keys())
        wanted = held if names is None else names
        if missing := sorted(set(wanted) - held):
            raise UsageError(f"{self.shard(shard)}: holds no {missing[0]!r}; it holds {', '.join(sorted(held))}")
        return {name: file.get_slice(name)[row] for name in wanted}

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            if not path.is_file():
                raise UsageError(f"{path}: is not there (yet); run collect again")
            self._open[path] = safe_open(path, framework="np")
        return self._open[path]

    def rows(self, index: int) -> pa.Table:
        """The candidates of one shard, a row each, with every evaluator's reward, status and error beside them.

        Columns of evaluators are named reward/NAME, status/NAME and error/NAME, where NAME has scored the shard.
        """
        table = read_rows(self.shard(index) / ROWS_FILE)
        for name in self.evaluators:
            if self.scores(name, index).is_dir():
                scores = read_rows(self.scores(name, index) / ROWS_FILE)
                for column in ("reward", "status", "error"):
                    table = table.append_column(f"{column}/{name}", scores[column])
        return table

    def table(self, names: Iterable[str] | None = None, evaluators: Sequence[str] | None = None) -> Table:
        """All groups that are there and scored by `evaluators` (default: every one with scores), in memory.

        `names`: of the shards' tensors, besides `valid`; default: all. Rewards that failed are NaN. Shards without
        one valid candidate are left out. Raises UsageError when there is no such shard.
        """
        judges = self.evaluators if evaluators is None else tuple(evaluators)
        scored = [i for i in self.done() if all(self.scores(name, i).is_dir() for name in judges)]
        indices = [i for i in scored if self._file(self.shard(i) / TENSORS).get_tensor("valid").any()]
        if not indices:
            by = f" scored by {', '.join(judges)}" if judges else ""
            raise UsageError(f"{self.folder}: holds no shard{by}; collect and score write them")
        parts = [self._tensors(i, names) | self._rewards(i, judges) for i in indices]
        prompts = [text for i in indices for text in self.prompts(i)]
        return Table(prompts, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def prompts(self, index: int) -> list[str]:
        """The prompts of a shard's groups."""
        texts: list[str] = read_rows(self.shard(index) / ROWS_FILE, ["prompt"])["prompt"].to_pylist()
        return texts[:: self.n]

    def _tensors(self, index: int, names: Iterable[str] | None) -> dict[str, NDArray[Any]]:
        file = self._file(self.shard(index) / TENSORS)
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else {*names, "valid"})}

    def _rewards(self, index: int, judges: Sequence[str]) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        for name in judges:
            folder = self.scores(name, index)
            rows = read_rows(folder / ROWS_FILE)
            reward = rows["reward"].to_numpy().astype(np.float32)
            tensors[f"reward/{name}"] = reward.reshape(-1, self.n)
            previews = rows["previews"].to_pylist()
            for place, rung in enumerate(self.rungs if previews and previews[0] else ()):
                column = np.array([values[place] for values in previews], dtype=np.float32)
                tensors[f"preview/{name}/{rung:g}"] = column.reshape(-1, self.n)
            if (folder / FEATURES).is_file():
                tensors[f"features/{name}"] = self._file(folder / FEATURES).get_tensor("features")
        return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """What dataset.json holds. Raises UsageError when it is not there or not ours."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
        count, size, n = config["prompts"]["count"], config["groups_per_shard"], config["n"]
        if config["format"] != FORMAT or min(count, size, n) < 1:
            raise ValueError(f"format {config['format']!r}, this version reads {FORMAT}")
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: is no dataset, there is no {CONFIG}; collect makes one") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return dict(config)


def pin(folder: Path, config: Mapping[str, Any]) -> Dataset:
    """Make the dataset of this configuration, or go on with the one that is there.

    Raises UsageError, naming every difference, when the one that is there has another configuration.
    """
    wanted = json.loads(canonical_json({**config, "format": FORMAT}))
    for name in ("shards", "scores"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if (folder / CONFIG).exists():
        found = read_config(folder)
        if lines := list(differences(found, wanted)):
            raise UsageError(f"{folder / CONFIG}: this dataset was made otherwise: {'; '.join(lines)}")
    else:
        write_file(folder / CONFIG, canonical_json(wanted))
    for place in (folder, folder / "shards", *(folder / "scores").glob("*")):
        sweep(place)
    return Dataset(folder)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A phrase for every field in which two configurations differ."""
    for key in sorted(set(found) | set(wanted)):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b and prefix + key not in FREE_TO_DIFFER:
            yield f"{prefix}{key} was {json.dumps(a)}, now {json.dumps(b)}"


def set_aside(folder: Path, root: Path) -> Path:
    """Move a damaged sealed folder out of the way, to be looked at; returns where it lies now."""
    (root / "damaged").mkdir(exist_ok=True)
    target = root / "damaged" / f"{folder.parent.name}-{folder.name}-{secrets.token_hex(4)}"
    os.rename(folder, target)
    return target


def check_evaluator_name(name: str) -> str:
    """Raises UsageError for a name that cannot be a folder's."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"evaluator {name!r}: scores are kept under its name; write NAME={name} to give it one")
    return name


def statuses(column: pa.ChunkedArray) -> dict[str, int]:
    """How many rows have which status, the good ones first."""
    counts = {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}
    return {OK: counts.pop(OK, 0), **dict(sorted(counts.items()))}
