"""Probe folders: model.safetensors and config.json, nothing else is ever read.

Knows how to refuse: pickles by their first bytes, headers that lie about sizes, tensors that the configuration does
not have. A refusal costs milliseconds: header and configuration are compared before any memory is taken for a tensor.
"""

import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from huggingface_hub import PyTorchModelHubMixin
from msgspec import Meta
from safetensors.torch import load_file, save

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.files import parse_json
from probeselect.data.sealed import write_file
from probeselect.probe.config import CONFIG, ProbeConfig, config_json, read_config
from probeselect.probe.network import ProbeNetwork

WEIGHTS = "model.safetensors"
MAX_HEADER = 1 << 20  # bytes; a probe has about a hundred tensors
MAX_TENSORS = 4096
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
Count = Annotated[int, Meta(ge=0)]


class Stored(msgspec.Struct, frozen=True):
    """A tensor in the header of a safetensors file."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"]
    shape: Annotated[tuple[Count, ...], Meta(max_length=8)]
    data_offsets: tuple[Count, Count]


class Probe(
    ProbeNetwork,
    PyTorchModelHubMixin,
    library_name="probeselect",
    license="apache-2.0",
    tags=["probeselect", "text-to-image"],
):
    """A probe that is loaded from a folder or the hub, and saved there: `Probe.from_pretrained("some/probe")`."""

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> "Probe":
        """What `Probe.from_pretrained` does."""
        return load_probe(model_id)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_probe(self, save_directory)


def load_probe(path: str | os.PathLike[str]) -> Probe:
    """Load a probe from a folder or hub id. Raises ProbeSelectError in one line that names the file."""
    folder = Path(path).expanduser()
    if folder.is_file():
        refuse_pickle(folder)
        raise UsageError(f"{folder}: a probe is a folder with {WEIGHTS} and {CONFIG}, not a file")
    if not folder.is_dir():
        folder = _from_hub(str(path))
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UsageError(f"{folder}: no {name} there, so it is not a probe")
    refuse_pickle(folder / WEIGHTS)
    header, config = read_header(folder / WEIGHTS), read_config(folder)
    probe = _shape_of(config)
    _check_tensors(folder / WEIGHTS, header, probe)
    tensors = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    probe.load_state_dict(tensors, assign=True)
    return probe.eval()


def _shape_of(config: ProbeConfig) -> Probe:
    """The probe of a configuration without memory for its tensors, however large a file may say that they are."""
    with torch.device("meta"):
        sizes = zip(config.projected_channels, config.tap_channels, strict=True)
        return Probe(config, [torch.empty(size) for size in sizes])


def save_probe(probe: ProbeNetwork, folder: Path, card: str = "") -> None:
    """Write the model card, if given, weights (fp16) and configuration; each file whole or not at all.

    Raises UsageError, before anything is written, for a configuration that could not be read again.
    """
    config = config_json(probe.config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in probe.state_dict().items()}
    if card:
        write_file(folder / "README.md", card.encode())
    write_file(folder / WEIGHTS, save(tensors))
    write_file(folder / CONFIG, config)


def refuse_pickle(path: Path) -> None:
    """Raise if the file's first bytes are a pickle's or a torch zip archive's."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start == b"PK\x03\x04":
        raise UsageError(f"{path}: is a pickle, which can run code when loaded; only safetensors are read")


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors that a safetensors file says it has, by name, checked against its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UsageError(f"{path}: header length {length} is not possible for a probe of {size} bytes")
        text = file.read(length)
    entries = parse_json(text, dict[str, msgspec.Raw], f"{path}: header")
    entries.pop("__metadata__", None)  # what somebody wanted to say of the file
    if len(entries) > MAX_TENSORS:
        raise UsageError(f"{path}: {len(entries)} tensors, where a probe has at most {MAX_TENSORS}")
    header = {
        name: parse_json(bytes(entry), Stored, f"{path}: tensor {name[:60]!r}") for name, entry in entries.items()
    }
    _check_layout(path, header, size - 8 - length)
    return header


def _check_layout(path: Path, header: Mapping[str, Stored], data: int) -> None:
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        count = BYTES[entry.dtype]
        for side in entry.shape:
            count *= side
        if first != end or last - first != count or last > data:
            raise UsageError(f"{path}: tensor {name[:60]!r} lies at {first}..{last}, which cannot be right")
        end = last
    if end != data:
        raise UsageError(f"{path}: {data} bytes of tensors, the header names {end}")


def _check_tensors(path: Path, header: Mapping[str, Stored], probe: ProbeNetwork) -> None:
    wanted = {name: tuple(value.shape) for name, value in probe.state_dict().items()}
    for name in sorted(set(wanted) ^ set(header)):
        state = "is missing" if name in wanted else "is not one of this probe's"
        raise UsageError(f"{path}: tensor {name[:60]!r} {state} according to {CONFIG}")
    for name, shape in wanted.items():
        if header[name].shape != shape:
            raise UsageError(f"{path}: tensor {name!r} is {list(header[name].shape)}, {CONFIG} says {list(shape)}")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"scorer {name!r}: neither embedded, random, preview:EVALUATOR, a probe's folder nor a hub id")
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG]))
    except Exception as error:  # whatever the hub's client raises over the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProbeSelectError(f"scorer {name!r}: no such folder, and the hub did not give it ({reason})") from error
