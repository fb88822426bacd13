"""Probe folders: model.safetensors and config.json, nothing else is ever read.

Knows how to refuse: pickles by their first bytes, headers that lie about sizes, tensors that the configuration does
not have. A refusal costs milliseconds, because the header is checked before any tensor is touched.
"""

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.data.sealed import write_file
from probeselect.probe.network import Probe, ProbeConfig

MAX_HEADER = 1 << 20  # bytes; a probe has about a hundred tensors
MAX_CONFIG = 1 << 20
MAX_TENSORS = 4096
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


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
    header = read_header(folder / WEIGHTS)
    config = _read_config(folder / CONFIG)
    probe = Probe(config)
    _check_tensors(folder / WEIGHTS, header, probe)
    probe.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return probe.eval()


def save_probe(probe: Probe, folder: Path, card: str = "") -> None:
    """Write the model card, if given, weights (fp16) and configuration; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in probe.state_dict().items()}
    if card:
        write_file(folder / "README.md", card.encode())
    write_file(folder / WEIGHTS, save(tensors))
    write_file(folder / CONFIG, (json.dumps(probe.config.to_dict(), indent=1) + "\n").encode())


def refuse_pickle(path: Path) -> None:
    """Raise if the file's first bytes are a pickle's or a torch zip archive's."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start == b"PK\x03\x04":
        raise UsageError(f"{path}: is a pickle, which can run code when loaded; only safetensors are read")


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The checked header of a safetensors file: name -> {dtype, shape, data_offsets}."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UsageError(f"{path}: header length {length} is not possible for a probe of {size} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise UsageError(f"{path}: {len(header)} tensors, where a probe has at most {MAX_TENSORS}")
        _check_layout(path, header, size - 8 - length)
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not a safetensors header ({error})") from error
    return header


def _check_layout(path: Path, header: dict[str, Any], data: int) -> None:
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        count = _BYTES[entry["dtype"]]
        for side in entry["shape"]:
            count *= side
        if first != end or last - first != count or last > data:
            raise UsageError(f"{path}: tensor {name[:60]!r} lies at {first}..{last}, which cannot be right")
        end = last
    if end != data:
        raise UsageError(f"{path}: {data} bytes of tensors, the header names {end}")


def _check_tensors(path: Path, header: dict[str, Any], probe: Probe) -> None:
    wanted = {name: list(value.shape) for name, value in probe.state_dict().items()}
    for name in sorted(set(wanted) ^ set(header)):
        state = "is missing" if name in wanted else "is not one of this probe's"
        raise UsageError(f"{path}: tensor {name[:60]!r} {state} according to {CONFIG}")
    for name, shape in wanted.items():
        if header[name]["shape"] != shape:
            raise UsageError(f"{path}: tensor {name!r} is {header[name]['shape']}, {CONFIG} says {shape}")


def _read_config(path: Path) -> ProbeConfig:
    if path.stat().st_size > MAX_CONFIG:
        raise UsageError(f"{path}: {path.stat().st_size} bytes, where a configuration has at most {MAX_CONFIG}")
    try:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise UsageError("must hold a JSON object")
        return ProbeConfig.from_dict(fields)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable JSON file ({error})") from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"scorer {name!r}: neither embedded, random, preview:EVALUATOR, a probe's folder nor a hub id")
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG]))
    except Exception as error:  # whatever the hub's client raises over the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProbeSelectError(f"scorer {name!r}: no such folder, and the hub did not give it ({reason})") from error
