"""Shards: the atomic unit of collected data, each a safetensors file of whole groups.

Knows files only. A shard is complete or absent: it is written under another name, synced, then renamed. Resuming is
listing. Tensors of a shard of G groups with N candidates each, all fp16 unless said:

    map/TAP/RUNG          [G, N, C, H, W]  projected activation
    prompt                [G, D]           the backbone's prompt embedding
    features/EVALUATOR    [G, N, ...]      what the evaluator extracts from the finished picture
    reward/EVALUATOR      [G, N] fp32      its reward of the finished picture
    preview/EVALUATOR/RUNG [G, N] fp32     its reward of the decoded x0-prediction
    seeds                 [G, N] int64
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from probeselect.core.errors import UsageError

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Shard:
    """Whole groups: their prompts and tensors."""

    prompts: list[str]
    tensors: dict[str, Tensor]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}{SUFFIX}"


def write_shard(path: Path, shard: Shard) -> None:
    """Publish a shard: complete under its name, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {name: tensor.contiguous() for name, tensor in shard.tensors.items()},
        partial,
        metadata={"prompts": json.dumps(shard.prompts)},
    )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_shards(folder: Path, names: Iterable[str] | None = None) -> Iterator[Shard]:
    """Yield the shards of a folder in order, with only the tensors `names` when given.

    Raises UsageError when there is no shard, or a shard lacks a tensor.
    """
    paths = sorted(folder.glob(f"shard-*{SUFFIX}"))
    if not paths:
        raise UsageError(f"{folder}: no shards there; collect writes them")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            wanted = held if names is None else set(names)
            if missing := sorted(wanted - held):
                raise UsageError(f"{path}: holds no {missing[0]!r}")
            yield Shard(json.loads(file.metadata()["prompts"]), {name: file.get_tensor(name) for name in wanted})


def read_all(folder: Path, names: Iterable[str] | None = None) -> Shard:
    """All shards of a folder as one."""
    shards = list(read_shards(folder, names))
    tensors = {name: torch.cat([s.tensors[name] for s in shards]) for name in shards[0].tensors}
    return Shard([prompt for s in shards for prompt in s.prompts], tensors)
