"""What differs between two files that should hold the same: JSON, pictures, tensors, tables and lines of text.

Knows content; does not know which command wrote it, nor which differences are meant.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

RELATIVE, ABSOLUTE = 1e-6, 1e-9  # of numbers
GREY_LEVELS, PIXEL_SHARE = 1, 0.001  # of pictures
Kind = Literal["changed", "gone", "new", "slight"]  # new and slight ones are told, and are no fault


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    path: in the file, such as `candidates[3].scores[0].score` or a tensor's name; "" for all of it.
    before, after: what to tell of it. inside: the fields that hold texts, of all objects around it, with those texts.
    spot: of a picture, width and height of the smallest box that holds all pixels that differ.
    """

    file: str
    path: str
    kind: Kind
    before: object = None
    after: object = None
    inside: tuple[tuple[str, str], ...] = ()
    spot: tuple[int, int] = (0, 0)

    @property
    def fault(self) -> bool:
        return self.kind in ("changed", "gone")

    @property
    def plain_path(self) -> str:
        """Without indices."""
        return re.sub(r"\[\d+\]", "", self.path).strip(".")

    def __str__(self) -> str:
        where = f"{self.file}: {self.path}".rstrip(": ")
        match self.kind:
            case "gone":
                return f"{where} is gone"
            case "new":
                return f"{where} is new"
            case _:
                return f"{where}: {_short(self.before)} -> {_short(self.after)}"


@dataclass(frozen=True)
class Reader:
    """What comparing has to know of a side: texts that are its own, such as paths of its folders, and their names."""

    own: Mapping[str, str]

    def text(self, path: Path) -> str:
        found = path.read_text("utf-8")
        for own, name in self.own.items():
            found = found.replace(own, name)
        return found


def compare_files(
    name: str, before: Path, after: Path, readers: tuple[Reader, Reader], taken: re.Pattern[str]
) -> Iterator[Difference]:
    """Compare by what the ending says that the files are; those of an unknown ending byte for byte.

    name: of the file, to be told. taken: names of JSON fields whose values are not compared.
    """
    texts = zip(readers, (before, after), strict=True)
    match before.suffix:
        case ".json":
            a, b = (json.loads(reader.text(path)) for reader, path in texts)
            yield from compare_json(a, b, file=name, taken=taken)
        case ".jsonl":
            a, b = ([json.loads(line) for line in reader.text(path).splitlines()] for reader, path in texts)
            yield from compare_json(a, b, file=name, taken=taken)
        case ".txt":
            a, b = (reader.text(path).splitlines() for reader, path in texts)
            yield from compare_json(a, b, file=name, taken=taken)
        case ".png" | ".webp" | ".jpeg":
            yield from compare_pictures(name, before, after)
        case ".safetensors" | ".npz":
            yield from compare_tensors(name, tensors_of(before), tensors_of(after))
        case ".parquet":
            a, b = pq.read_table(before), pq.read_table(after)
            types = ({field.name: str(field.type) for field in table.schema} for table in (a, b))
            yield from compare_json(*types, file=name, path="types", taken=taken)
            yield from compare_json(a.to_pydict(), b.to_pydict(), file=name, taken=taken)
        case _:
            if before.read_bytes() != after.read_bytes():
                yield Difference(name, "", "changed", "bytes", "other bytes")


def compare_json(
    before: object,
    after: object,
    *,
    file: str,
    taken: re.Pattern[str],
    path: str = "",
    inside: tuple[tuple[str, str], ...] = (),
) -> Iterator[Difference]:
    """Fields of both must be equal, numbers nearly; a field more is new, one less is gone. Lists must be as long."""

    def differ(kind: Kind, at: str, *sides: object) -> Difference:
        return Difference(file, at, kind, *sides, inside=inside)

    if isinstance(before, dict) and isinstance(after, dict):
        inside = (*inside, *((name, value) for name, value in before.items() if isinstance(value, str)))
        for name, value in before.items():
            at = f"{path}.{name}" if path else str(name)
            if name not in after:
                yield differ("gone", at, value)
            elif not taken.fullmatch(str(name)):
                yield from compare_json(value, after[name], file=file, taken=taken, path=at, inside=inside)
        for name in after:
            if name not in before:
                yield differ("new", f"{path}.{name}" if path else str(name), None, after[name])
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield differ("changed", path, f"{len(before)} entries", f"{len(after)} entries")
        for index, (a, b) in enumerate(zip(before, after, strict=False)):
            yield from compare_json(a, b, file=file, taken=taken, path=f"{path}[{index}]", inside=inside)
    elif not same_value(before, after):
        yield differ("changed", path, before, after)


def same_value(before: object, after: object) -> bool:
    """Whether two plain values are equal; whole numbers to the last digit, others to a millionth."""
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    if isinstance(before, int) and isinstance(after, int):
        return before == after  # seeds are long
    if isinstance(before, int | float) and isinstance(after, int | float):
        both_nan = math.isnan(before) and math.isnan(after)
        return both_nan or math.isclose(before, after, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return before == after


def compare_pictures(name: str, before: Path, after: Path) -> Iterator[Difference]:
    """Pixel by pixel; a few that differ by one grey level are told, and are no fault."""
    a, b = _pixels(before), _pixels(after)
    if a.shape != b.shape:
        yield Difference(name, "size", "changed", a.shape, b.shape)
        return
    apart = np.abs(a - b).reshape(*a.shape[:2], -1).max(2)
    if not (count := int((apart > 0).sum())):
        return
    slight = apart.max() <= GREY_LEVELS and count <= PIXEL_SHARE * apart.size
    rows, columns = np.nonzero(apart)
    spot = (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    told = f"{count} of {apart.size} pixels differ by up to {apart.max()} grey levels, in {spot[0]} x {spot[1]} px"
    yield Difference(name, "", "slight" if slight else "changed", "picture", told, spot=spot)


def _pixels(path: Path) -> NDArray[np.int32]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"), dtype=np.int32)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """By name, as they are stored; the metadata of a safetensors file are left out."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


def compare_tensors(
    file: str, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> Iterator[Difference]:
    for name, a in before.items():
        if name not in after:
            yield Difference(file, name, "gone")
            continue
        b = after[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            yield Difference(file, name, "changed", f"{a.dtype} {list(a.shape)}", f"{b.dtype} {list(b.shape)}")
            continue
        nearly = torch.isclose(a.double(), b.double(), RELATIVE, ABSOLUTE, equal_nan=True)
        same = nearly if a.is_floating_point() else a == b
        if not same.all():
            apart = (a.double() - b.double()).abs().nan_to_num(math.inf).max().item()
            yield Difference(file, name, "changed", "values", f"{int((~same).sum())} others, by up to {apart:.3g}")
    for name in after:
        if name not in before:
            yield Difference(file, name, "new")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:87]}..."
