"""dataset.json: what defines the data of a dataset. Its fields, its reader and its writer."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from probeselect.core.description import Description, Size
from probeselect.core.errors import UsageError
from probeselect.core.files import checked, read_json
from probeselect.core.rungs import validate_rungs
from probeselect.data.sealed import canonical_json, write_file

CONFIG = "dataset.json"
FORMAT = 1
FREE_TO_DIFFER = ("model",)  # a folder may lie elsewhere on another machine; `weights` tells whether it is the same

Plain = str | int | float | bool | None
Count = Annotated[int, Meta(ge=1, le=10**9)]


class PinnedPrompts(msgspec.Struct, frozen=True):
    """How many prompts there are, and a digest of all of them."""

    count: Count
    sha256: str


NONE_YET = PinnedPrompts(1, "")  # of a dataset that groups are appended to


class DatasetConfig(Description, frozen=True, kw_only=True):
    """All that defines the data: two runs that differ in a field make different data, so they may not share a folder.

    A field that is not known is kept where a file has it, and told when a run differs in it.
    """

    format: int = FORMAT
    prompts: PinnedPrompts
    run: str  # seeds are hashes of (run, prompt id, index)
    n: Size  # candidates of a prompt
    rungs: Annotated[tuple[float, ...], Meta(max_length=1000)]
    map_channels: Size
    map_side: Size
    previews: bool
    image_format: Literal["png", "webp", "jpeg"]
    groups_per_shard: Annotated[int, Meta(ge=1, le=10**6)]
    batch_size: Count | None
    model: str
    revision: str
    weights: str  # a digest of those of the pipeline
    pipeline: str  # class name
    taps: Annotated[tuple[str, ...], Meta(max_length=64)]
    scheduler: dict[str, Plain]  # its configuration, and its `class`
    arguments: dict[str, Plain]  # of the pipeline's call
    dtype: str
    device: str

    def __post_init__(self) -> None:
        validate_rungs(self.rungs)
        if not isinstance(self.scheduler.get("class"), str):
            raise UsageError("scheduler: has no 'class' that is text")
        if not (self.steps is None or (type(self.steps) is int and self.steps > 1)):
            raise UsageError(
                f"arguments['num_inference_steps'] = {str(self.steps)[:20]!r}: must be a whole number from 2"
            )

    @property
    def steps(self) -> int | None:
        """Inference steps of every picture; None where the pipeline was left its own."""
        return self.arguments.get("num_inference_steps")  # type: ignore[return-value]

    @property
    def shard_count(self) -> int:
        return -(-self.prompts.count // self.groups_per_shard)


def read_config(folder: Path) -> DatasetConfig:
    """Raises UsageError when the folder has none, or none of ours: the field, its value and what would be right."""
    if not (folder / CONFIG).exists():
        raise UsageError(f"{folder}: is no dataset, there is no {CONFIG}; collect makes one")
    return read_json(folder / CONFIG, DatasetConfig, format=FORMAT)


def pin_config(folder: Path, config: DatasetConfig) -> None:
    """Write the configuration, or see that the one that is there is the same.

    Raises UsageError, naming every difference, where it is not, and for one that could not be read again.
    """
    wanted = canonical_json(msgspec.to_builtins(checked(config, str(folder / CONFIG))))
    if not (folder / CONFIG).exists():
        write_file(folder / CONFIG, wanted)
        return
    read_config(folder)
    if lines := list(differences(_fields(folder), json.loads(wanted))):
        raise UsageError(f"{folder / CONFIG}: this dataset was made otherwise: {'; '.join(lines)}")


def count_prompts(folder: Path, count: int) -> None:
    """Say that there are so many prompts now; every other field of the file stays."""
    fields = _fields(folder)
    write_file(folder / CONFIG, canonical_json({**fields, "prompts": {**fields["prompts"], "count": count}}))


def _fields(folder: Path) -> dict[str, Any]:
    """All that the file has, and be it by a later version."""
    return read_json(folder / CONFIG, dict[str, Any])


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A phrase for every field in which two configurations differ."""
    for key in sorted(set(found) | set(wanted)):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b and prefix + key not in FREE_TO_DIFFER:
            yield f"{prefix}{key} was {json.dumps(a)}, now {json.dumps(b)}"
