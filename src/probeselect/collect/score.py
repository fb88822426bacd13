"""Scores the finished pictures of a dataset with an evaluator, after the fact or as they come.

Reads pictures, writes rewards beside them; touches no shard. Rerun = resume. An evaluator that fails on one picture
leaves a row that says so; one that fails on all of a shard stops the run, for then it is not the pictures.
"""

import io
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.data.dataset import Dataset, check_evaluator_name, set_aside
from probeselect.data.sealed import DamagedError, Manifest, read_manifest, sha256, verify
from probeselect.data.shards import (
    FAILED,
    NOT_FINITE,
    OK,
    ROWS_FILE,
    UNSCORED,
    ScoresManifest,
    half,
    image_name,
    read_rows,
    write_scores,
)
from probeselect.evaluators.base import identity, judge

FEATURES_AT_MOST = 2**14  # values of one picture; larger features (all tokens of a ViT) are not worth their place
POLL_SECONDS = 0.5


def score(dataset: Dataset, evaluator: Any, part: tuple[int, int] = (0, 1)) -> Iterator[int]:
    """Yield the index of every shard of this part that is there, once it has this evaluator's scores.

    Raises ProbeSelectError when the evaluator fails on every picture of a shard, or when a picture has changed since
    it was collected; UsageError when other weights have scored some of it; OSError naming the path when the disk
    refuses.
    """
    waiting = [index for index in dataset.done() if index % part[1] == part[0]]
    while waiting:
        left = []
        for index in waiting:
            if score_shard(dataset, evaluator, index):
                yield index
            else:
                left.append(index)
        if waiting := left:
            time.sleep(POLL_SECONDS)
    dataset.leases.sweep()


def score_shard(dataset: Dataset, evaluator: Any, index: int) -> bool:
    """See to it that a shard has this evaluator's scores. False while another process is at it."""
    name = check_evaluator_name(evaluator.name)
    folder, of = dataset.scores(name, index), read_manifest(dataset.shard(index), Manifest).sha256
    about = ScoresManifest(evaluator=name, weights=identity(evaluator), of=of)
    if folder.is_dir() and _is_good(folder, about):
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with dataset.leases.taken(f"{name}.{folder.name}") as ours:
        if not ours:
            return False
        if folder.is_dir():
            if _is_good(folder, about):
                return True
            set_aside(folder, dataset.folder)
        rows, features = _judged(dataset, evaluator, index)
        write_scores(folder, rows, features, about)
    return True


def _is_good(folder: Path, about: ScoresManifest) -> bool:
    """Whole, and about the shard that is there now. Raises UsageError where other weights have scored it."""
    try:
        verify(folder)
        found = read_manifest(folder, ScoresManifest)
    except DamagedError:
        return False
    if found.weights != about.weights:
        raise UsageError(
            f"{folder}: was scored by {found.weights or 'nothing known'}, the weights of {about.evaluator} "
            f"are now {about.weights}; give them another name, or remove {folder.parent}"
        )
    return found.of == about.of


def _judged(dataset: Dataset, evaluator: Any, index: int) -> tuple[list[dict[str, Any]], NDArray[Any] | None]:
    """Rows in the form of `SCORES`, and features [G, N, ...] where the evaluator has small ones."""
    found = read_rows(dataset.shard(index) / ROWS_FILE, ["prompt_id", "prompt", "index", "image", "status"]).to_pylist()
    there = [i for i, row in enumerate(found) if row["image"]]
    prompts = [found[i]["prompt"] for i in there]
    judged = _judge(evaluator, _pictures(dataset, index, [found[i]["image"] for i in there]), prompts)
    if there and all(error for _, error, _ in judged):
        raise ProbeSelectError(f"evaluator {evaluator.name}: fails on every picture of a shard: {judged[0][1]}")
    previews = _preview_rewards(dataset, evaluator, index, [found[i] for i in there], prompts)
    by_row = dict(zip(there, zip(judged, previews, strict=True), strict=True))
    rows = []
    for i, row in enumerate(found):
        (reward, error, _), before = by_row.get(i, ((math.nan, "", None), []))
        status = UNSCORED if i not in by_row else FAILED if error else OK if math.isfinite(reward) else NOT_FINITE
        rows.append(
            {"prompt_id": row["prompt_id"], "index": row["index"], "reward": reward if status == OK else None}
            | {"previews": before or [None] * len(next(iter(previews), [])), "status": status, "error": error}
        )
    features = {i: features for i, (_, _, features) in zip(there, judged, strict=True) if features is not None}
    return rows, _stacked(features, len(found), dataset.n)


def _stacked(features: dict[int, NDArray[Any]], count: int, n: int) -> NDArray[Any] | None:
    """[G, N, ...] fp16; NaN where a picture has none."""
    first = next(iter(features.values()), None)
    if first is None or first.size > FEATURES_AT_MOST:
        return None
    stacked = np.full((count, *first.shape), np.nan, dtype=np.float16)
    for i, values in features.items():
        stacked[i] = half(values)
    return stacked.reshape(-1, n, *first.shape)


def _judge(
    evaluator: Any, pictures: Sequence[Image.Image], prompts: Sequence[str]
) -> list[tuple[float, str, NDArray[Any] | None]]:
    """(reward, error, features) of every picture; when all at once fails, each alone."""
    if not pictures:
        return []
    try:
        seen, rewards = judge(evaluator, pictures, prompts)
        features = _numpy(seen)
        return [(float(r), "", None if features is None else features[i]) for i, r in enumerate(rewards)]
    except Exception as error:  # of any type: an evaluator is anybody's code
        if len(pictures) == 1:
            return [(math.nan, " ".join(f"{type(error).__name__}: {error}".split()), None)]
        return [one for pair in zip(pictures, prompts, strict=True) for one in _judge(evaluator, [pair[0]], [pair[1]])]


def _numpy(values: Any) -> NDArray[Any] | None:
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else values


def _preview_rewards(
    dataset: Dataset, evaluator: Any, index: int, rows: Sequence[dict[str, Any]], prompts: Sequence[str]
) -> list[list[float | None]]:
    """Rewards of the decoded x0-predictions, a list over the rungs for every row; empty lists where none are kept."""
    if not dataset.config.previews:
        return [[] for _ in rows]
    columns = []
    for rung in dataset.rungs:
        names = [image_name(r["prompt_id"], r["index"], dataset.config.image_format, rung) for r in rows]
        columns.append([reward for reward, *_ in _judge(evaluator, _pictures(dataset, index, names), prompts)])
    return [[value if math.isfinite(value) else None for value in values] for values in zip(*columns, strict=True)]


def _pictures(dataset: Dataset, index: int, names: Sequence[str]) -> list[Image.Image]:
    """The pictures as they were collected. Raises ProbeSelectError for one whose bytes have changed since."""
    folder = dataset.shard(index)
    sealed = read_manifest(folder, Manifest).files
    pictures = []
    for name in names:
        data = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if name not in sealed or sha256(data) != sealed[name].sha256:
            raise ProbeSelectError(f"{folder / name}: is not as it was collected; collect again to repair it")
        with Image.open(io.BytesIO(data)) as picture:
            pictures.append(picture.convert("RGB"))
    return pictures
