"""Shards: what was collected of some whole groups, as a sealed folder, and what one evaluator says of it, as another.

    shards/shard-00012/tensors.safetensors   map/TAP/RUNG [G, N, C, H, W] fp16: projected, reduced activations
                                             prompt [G, D] fp16: the backbone's prompt embedding
                                             projection/TAP [P, C] fp32: the basis that the maps were projected by
                                             seeds [G, N] int64, valid [G, N] bool: False where something went wrong
                       rows.parquet          a row a candidate, in the order of the tensors: `ROWS`
                       images/               finished pictures, and previews where they were asked for
                       manifest.json
    scores/NAME/shard-00012/rows.parquet     a row a candidate: `SCORES`
                            features.safetensors   features [G, N, ...] fp16, where they are small
                            manifest.json

G groups of N candidates. A tensor's slice of one group lies in one piece, so a group is read without the others.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import structs
from numpy.typing import NDArray
from safetensors.numpy import save

from probeselect.core.errors import UsageError
from probeselect.data.sealed import Manifest, seal

TENSORS, ROWS_FILE, FEATURES = "tensors.safetensors", "rows.parquet", "features.safetensors"
IMAGES = "images"
OK, NOT_FINITE, FAILED, STOPPED, UNSCORED = "ok", "not finite", "failed", "stopped", "no picture"
IMAGE_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "quality": 50},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}

ROWS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("index", pa.int32()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("scheduler", pa.string()),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
SCORES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("reward", pa.float32()),
        ("previews", pa.list_(pa.float32())),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)


class Made(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a shard was made; None: nobody has noted it."""

    largest_wave: int | None = None
    wave_halvings: int | None = None
    given_up: int | None = None  # groups of it that could not be made


class ShardManifest(Manifest, frozen=True, kw_only=True):
    """The manifest of a shard."""

    rows: int
    made: Made


class ScoresManifest(Manifest, frozen=True, kw_only=True):
    """The manifest of what an evaluator says of a shard."""

    rows: int = 0
    evaluator: str
    weights: str  # a digest of the evaluator's
    of: str  # the digest of the shard's manifest


@dataclass(frozen=True)
class Content:
    """What one shard holds before it is written. `images` by file name, encoded."""

    tensors: Mapping[str, NDArray[Any]]
    rows: Sequence[Mapping[str, Any]]
    images: Mapping[str, bytes] = field(default_factory=dict)
    made: Made = field(default_factory=Made)


def shard_name(index: int) -> str:
    return f"shard-{index:05d}"


def seed_of(run: str, prompt_id: str, index: int, attempt: int = 0) -> int:
    """A candidate's seed, in [0, 2**32): a hash, so that it depends on nothing but what it is the seed of.

    32 bits, because torch's CPU generator reads no more of a seed.
    """
    text = "\0".join((run, prompt_id, str(index), str(attempt)))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")


def seeds_of(run: str, prompt_id: str, n: int) -> list[int]:
    """The seeds of a group, all different."""
    seeds: list[int] = []
    for index in range(n):
        attempt = 0
        while (seed := seed_of(run, prompt_id, index, attempt)) in seeds:
            attempt += 1
        seeds.append(seed)
    return seeds


def image_name(prompt_id: str, index: int, image_format: str, rung: float | None = None) -> str:
    """Name of a picture within its shard. Ids are hashed, so no id can leave the folder."""
    stem = hashlib.sha256(prompt_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    preview = "" if rung is None else f"-at-{rung:g}"
    return f"{IMAGES}/{stem}-{index}{preview}.{image_format}"


def encode_image(picture: Any, image_format: str) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, **IMAGE_FORMATS[image_format])
    return out.getvalue()


def write_shard(folder: Path, content: Content) -> bool:
    """Publish a shard. False when somebody else has published it before."""
    files = {TENSORS: save(dict(content.tensors)), ROWS_FILE: _parquet(content.rows, ROWS), **content.images}
    return seal(folder, files, ShardManifest(rows=len(content.rows), made=content.made))


def write_scores(
    folder: Path, rows: Sequence[Mapping[str, Any]], features: NDArray[Any] | None, about: ScoresManifest
) -> bool:
    """Publish what an evaluator says of a shard; features [G, N, ...] fp16."""
    files = {ROWS_FILE: _parquet(rows, SCORES)}
    if features is not None:
        files[FEATURES] = save({"features": features})
    return seal(folder, files, structs.replace(about, rows=len(rows)))


def _parquet(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), out, compression="zstd")
    return bytes(out.getvalue())


def read_rows(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a shard or of scores. Raises UsageError when the file cannot be read."""
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def half(values: NDArray[Any]) -> NDArray[np.float16]:
    """To fp16; what does not fit becomes infinite, and is found by `finite`."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(np.float16))


def finite(tensors: Mapping[str, NDArray[Any]], groups: tuple[int, int]) -> NDArray[np.bool_]:
    """Which candidates [G, N] have only finite activations."""
    valid = np.ones(groups, dtype=bool)
    for name, values in tensors.items():
        if name.startswith("map/"):
            valid &= np.isfinite(values).reshape(*groups, -1).all(-1)
    return valid
