"""A dataset: the folder that `collect` fills and `train` reads; its pinned configuration, shards and scores.

dataset.json        what defines the data; a run with another configuration is refused
shards/, scores/    see shards.py
leases/             who is at work on what; gone when all is done
damaged/            shards whose bytes had changed, set aside
summary.json, summary.png
"""

import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from msgspec import structs
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.names import is_plain_name
from probeselect.core.stage import Scorer, Stage
from probeselect.data.config import CONFIG, NONE_YET, DatasetConfig, count_prompts, pin_config, read_config
from probeselect.data.gallery import Gallery
from probeselect.data.leases import Leases
from probeselect.data.sealed import sweep
from probeselect.data.shards import FEATURES, ROWS_FILE, TENSORS, Content, read_rows, shard_name, write_shard
from probeselect.data.table import Stored, Table

OPEN_BYTES = 2**29  # of tensor files that are mapped at a time


class Dataset:
    """Opens a dataset for reading. Raises UsageError when the folder holds none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self._open: OrderedDict[Path, Any] = OrderedDict()  # the least lately used first
        self.mapped_bytes = 0  # of those

    @property
    def n(self) -> int:
        return self.config.n

    @property
    def rungs(self) -> tuple[float, ...]:
        return self.config.rungs

    @property
    def shard_count(self) -> int:
        """Of all shards, done or not."""
        return self.config.shard_count

    @property
    def leases(self) -> Leases:
        return Leases(self.folder / "leases")

    def shard(self, index: int) -> Path:
        return self.folder / "shards" / shard_name(index)

    def scores(self, evaluator: str, index: int) -> Path:
        return self.folder / "scores" / evaluator / shard_name(index)

    def done(self) -> list[int]:
        """Indices of the shards of this configuration that are there."""
        return [index for index in self.shards_there() if index < self.shard_count]

    def shards_there(self) -> list[int]:
        """Indices of all shards in the folder: listed, since a configuration may promise any number of them."""
        found = {path.name for path in (self.folder / "shards").glob("shard-*") if path.is_dir()}
        indices = {int(name.removeprefix("shard-")) for name in found if re.fullmatch(r"shard-[0-9]{5,9}", name)}
        return sorted(index for index in indices if shard_name(index) in found)

    @cached_property
    def evaluators(self) -> tuple[str, ...]:
        """Names of the evaluators with scores."""
        names = sorted(path.name for path in (self.folder / "scores").glob("*") if path.is_dir())
        return tuple(name for name in names if is_plain_name(name))

    def groups_of(self, index: int) -> int:
        """How many groups a shard holds."""
        size = self.config.groups_per_shard
        return min(size, self.config.prompts.count - index * size)

    def group(self, index: int, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """Tensors [N, ...] (`prompt` [D]) of one group by its place among the prompts, read without the others.

        `names`: of the shard's tensors (default: all), or features/EVALUATOR. Raises UsageError when the shard is not
        there, or holds no such tensor.
        """
        shard, row = divmod(index, self.config.groups_per_shard)
        wanted = self.tensor_names(shard) if names is None else names
        return {name: self._slices(shard, name)[row] for name in wanted}

    def tensor_names(self, shard: int) -> list[str]:
        """Of one shard, those that have groups: without projections and features."""
        names = self._file(self.shard(shard) / TENSORS).keys()
        return sorted(name for name in names if not name.startswith("projection/"))

    def projection(self, tap: str) -> NDArray[Any]:
        """The basis [P, C] that a tap's maps were projected by. Raises UsageError for a tap that was not collected."""
        for shard in self.done():
            file = self._file(self.shard(shard) / TENSORS)
            if f"projection/{tap}" in file.keys():  # noqa: SIM118 (not a mapping)
                basis: NDArray[Any] = file.get_tensor(f"projection/{tap}")
                return basis
        raise UsageError(f"{self.folder}: tap {tap!r} was not collected; collected were {', '.join(self.config.taps)}")

    def has_features(self, evaluator: str, shard: int) -> bool:
        return (self.scores(evaluator, shard) / FEATURES).is_file()

    def _slices(self, shard: int, name: str) -> Any:
        """A tensor [G, ...] of a shard that is read where it is indexed."""
        if name.startswith("features/"):
            return self._file(self.scores(name.removeprefix("features/"), shard) / FEATURES).get_slice("features")
        file = self._file(self.shard(shard) / TENSORS)
        if name not in file.keys():  # noqa: SIM118 (not a mapping)
            held = ", ".join(self.tensor_names(shard))
            raise UsageError(f"{self.shard(shard)}: holds no {name!r}; it holds {held}")
        return file.get_slice(name)

    def _file(self, path: Path) -> Any:
        """An open tensor file. The least lately used are closed when too much is mapped: data may exceed memory."""
        if path not in self._open:
            if not path.is_file():
                raise UsageError(f"{path}: is not there (yet); run collect again")
            self._open[path] = safe_open(path, framework="np")
            self.mapped_bytes += path.stat().st_size
            while len(self._open) > 1 and self.mapped_bytes > OPEN_BYTES:
                oldest, _ = self._open.popitem(last=False)
                self.mapped_bytes -= oldest.stat().st_size
        self._open.move_to_end(path)
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

    def prompts(self, index: int) -> list[str]:
        """The prompts of a shard's groups."""
        texts: list[str] = read_rows(self.shard(index) / ROWS_FILE, ["prompt"])["prompt"].to_pylist()
        return texts[:: self.n]

    def small_tensors(self, index: int, evaluators: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Of one shard: all but activations and features. Rewards that failed are NaN."""
        file = self._file(self.shard(index) / TENSORS)
        tensors = {name: file.get_tensor(name) for name in self.tensor_names(index) if not name.startswith("map/")}
        for name in evaluators:
            rows = read_rows(self.scores(name, index) / ROWS_FILE)
            reward = rows["reward"].to_numpy().astype(np.float32)
            tensors[f"reward/{name}"] = reward.reshape(-1, self.n)
            previews = rows["previews"].to_pylist()
            for place, rung in enumerate(self.rungs if previews and previews[0] else ()):
                column = np.array([values[place] for values in previews], dtype=np.float32)
                tensors[f"preview/{name}/{rung:g}"] = column.reshape(-1, self.n)
        return tensors

    @cached_property
    def gallery(self) -> Gallery:
        """The pictures of the shards that are there now."""
        return Gallery([self.shard(index) for index in self.done()], self.config.image_format)

    def table(self, evaluators: Sequence[str] = ()) -> Table:
        """All groups that are there and scored by all `evaluators`; activations and features stay on the disk.

        It has the rewards of every other evaluator that has scored them too. Groups without one valid candidate are
        left out. Raises UsageError when nothing is left.
        """
        indices = [i for i in self.done() if all(self.scores(name, i).is_dir() for name in evaluators)]
        if not indices:
            by = f" scored by {', '.join(evaluators)}" if evaluators else ""
            raise UsageError(f"{self.folder}: holds no shard{by}; collect and score write them")
        evaluators = [name for name in self.evaluators if all(self.scores(name, i).is_dir() for i in indices)]
        size = self.config.groups_per_shard
        groups = torch.tensor([i * size + row for i in indices for row in range(self.groups_of(i))])
        parts = [self.small_tensors(index, evaluators) for index in indices]
        names = set.intersection(*(set(part) for part in parts))
        tensors: dict[str, Any] = {n: torch.from_numpy(np.concatenate([part[n] for part in parts])) for n in names}
        prompts = [text for index in indices for text in self.prompts(index)]
        table = Table(prompts, tensors).take(whole := tensors["valid"].any(1).nonzero()[:, 0])
        if not len(table):
            raise UsageError(f"{self.folder}: no group has a candidate with finite activations")
        first = int(groups[whole[0]]) // size
        large = [name for name in self.tensor_names(first) if name.startswith("map/")]
        large += [f"features/{name}" for name in evaluators if self.has_features(name, first)]
        return replace(
            table,
            tensors=table.tensors | {name: Stored(self.group, name, groups[whole]) for name in large},
            bases={tap: torch.from_numpy(self.projection(tap)) for tap in self.config.taps if _has_map(tap, large)},
            total_steps=0 if "strength" in self.config.arguments else self.config.steps or 0,
            gallery=self.gallery if self.config.previews else None,
        )

    def stages(self, rung: float, taps: Sequence[str] | None = None) -> Iterator[Stage]:
        """All groups of `table()` as stages of candidates, as a scorer is asked about them; see `Table.stage`."""
        return self.table().stages(rung, taps)


def scores_of(scorer: Scorer, data: Dataset | Table, rung: float) -> Tensor:
    """What a scorer says of stored candidates at a rung: [G, N] on the CPU.

    Raises UsageError where the data do not hold what it reads.
    """
    with torch.no_grad():
        parts = [torch.as_tensor(scorer(stage)).float().cpu() for stage in data.stages(rung, scorer.taps)]
    return torch.cat(parts).view(-1, data.n)


def pin(folder: Path, config: DatasetConfig) -> Dataset:
    """Make the dataset of this configuration, or go on with the one that is there.

    Raises UsageError, naming every difference, when the one that is there has another configuration.
    """
    for name in ("shards", "scores"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pin_config(folder, config)
    for place in (folder, folder / "shards", *(folder / "scores").glob("*")):
        sweep(place)
    return Dataset(folder)


def pin_growing(folder: Path, config: DatasetConfig) -> Dataset:
    """`pin` for a dataset that groups are appended to: how many there are is free to differ."""
    prompts = read_config(folder).prompts if (folder / CONFIG).exists() else NONE_YET
    return pin(folder, structs.replace(config, prompts=prompts, groups_per_shard=1))


def append(dataset: Dataset, content: Content) -> tuple[Dataset, int]:
    """Publish a group as the next shard of a growing dataset; others may do so at the same time.

    Returns the dataset as it is now, and the shard's index.
    """
    index = len(dataset.done())
    while not write_shard(dataset.shard(index), content):
        index += 1
    count_prompts(dataset.folder, 1 + max(dataset.shards_there()))
    return Dataset(dataset.folder), index


def set_aside(folder: Path, root: Path) -> Path:
    """Move a damaged sealed folder out of the way, to be looked at; returns where it lies now."""
    (root / "damaged").mkdir(exist_ok=True)
    target = root / "damaged" / f"{folder.parent.name}-{folder.name}-{secrets.token_hex(4)}"
    os.rename(folder, target)
    return target


def check_evaluator_name(name: str) -> str:
    """Raises UsageError for a name that cannot be a folder's."""
    if not is_plain_name(name):
        raise UsageError(f"evaluator {name!r}: scores are kept under its name; write NAME={name} to give it one")
    return name


def _has_map(tap: str, names: Sequence[str]) -> bool:
    return any(name.startswith(f"map/{tap}/") for name in names)
