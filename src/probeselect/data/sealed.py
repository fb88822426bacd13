"""Sealed folders: complete or absent, and every byte accounted for.

Knows files, not what they hold. The files are written into a folder of another name and synced; `manifest.json` with
everybody's digest, and its own, comes last; one rename publishes the folder. Of several who publish the same folder
the first one wins, whatever leases said. All writing of collected data goes through here.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, structs

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.files import parse_json, read_bytes
from probeselect.data.owners import Owner

MANIFEST = "manifest.json"
FORMAT = 1
PARTIAL = ".partial"
MAX_MANIFEST = 64 * 2**20  # bytes


class DamagedError(ProbeSelectError):
    """A sealed folder whose bytes are not those that were sealed; the message says which file, and how."""


class SealedFile(msgspec.Struct, frozen=True):
    """One of the files of a sealed folder."""

    bytes: Annotated[int, Meta(ge=0)]
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a sealed folder holds. Who seals one makes a class of it with the fields that there are to be told."""

    format: int = FORMAT
    files: dict[str, SealedFile] = msgspec.field(default_factory=dict)
    sha256: str = ""  # of all the rest


M = TypeVar("M", bound=Manifest)


def canonical_json(content: Any) -> bytes:
    """The one way in which our JSON files are written, so that equal content means equal bytes."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of an open file do not say which file it was: let them."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and have the disk confirm it. Raises OSError, naming the path, when that fails."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with naming(path):
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)


def sync_folder(folder: Path) -> None:
    """Have the disk confirm which names a folder holds."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with naming(folder):
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Put a whole file in place of whatever has its name: the old one or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{_unique()}{PARTIAL}")
    try:
        write_synced(partial, data)
        os.rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def seal(folder: Path, files: Mapping[str, bytes], about: Manifest) -> bool:
    """Publish `files` (by relative name) as a sealed folder; `about` is its manifest, but for the list of them.

    Returns False, and leaves nothing behind, when the folder is there already. Raises OSError naming the path when
    the disk is full or refuses.
    """
    partial = folder.with_name(f".{folder.name}.{_unique()}{PARTIAL}")
    try:
        os.mkdir(partial)
        inner = sorted({Path(name).parent for name in files} - {Path(".")})
        for sub in inner:
            os.mkdir(partial / sub)
        for name, data in files.items():
            write_synced(partial / name, data)
        for sub in inner:
            sync_folder(partial / sub)
        write_synced(partial / MANIFEST, _manifest(files, about))
        sync_folder(partial)
        published = _rename_unless_there(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if not published:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    return published


def _rename_unless_there(partial: Path, folder: Path) -> bool:
    try:
        os.rename(partial, folder)
    except OSError:
        if folder.is_dir():
            return False
        raise
    return True


def _manifest(files: Mapping[str, bytes], about: Manifest) -> bytes:
    listed = {name: SealedFile(len(data), sha256(data)) for name, data in files.items()}
    content = msgspec.to_builtins(structs.replace(about, files=listed))
    del content["sha256"]
    return canonical_json({**content, "sha256": sha256(canonical_json(content))})


def read_manifest(folder: Path, form: type[M]) -> M:
    """The manifest of a sealed folder, as `form`. Raises DamagedError when it is not as it was sealed."""
    path = folder / MANIFEST
    try:
        data = read_bytes(path, MAX_MANIFEST)
        manifest = parse_json(data, form, str(path), FORMAT)
        fields = parse_json(data, dict[str, Any], str(path))
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: is missing") from error
    except UsageError as error:
        raise DamagedError(str(error)) from error
    digest = fields.pop("sha256", None)
    if sha256(canonical_json(fields)) != digest or canonical_json({**fields, "sha256": digest}) != data:
        raise DamagedError(f"{path}: does not have the digest that it names")
    return manifest


def verify(folder: Path) -> None:
    """Read every byte of a sealed folder. Raises DamagedError at the first that is wrong."""
    files = read_manifest(folder, Manifest).files
    expected = {MANIFEST, *files}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(expected ^ found):
        raise DamagedError(f"{folder / name}: {'is missing' if name in expected else 'does not belong here'}")
    for name, entry in files.items():
        path = folder / name
        if path.stat().st_size != entry.bytes:
            raise DamagedError(f"{path}: {path.stat().st_size} bytes, {entry.bytes} were sealed")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise DamagedError(f"{path}: its bytes have changed since it was sealed")


def sweep(folder: Path) -> None:
    """Remove what writers left unfinished that are surely dead."""
    for path in folder.glob(f".*{PARTIAL}"):
        owner = Owner.parse(path.name.removesuffix(PARTIAL).rsplit(".", 2)[-2])
        if owner is not None and owner.is_dead():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _unique() -> str:
    """Part of a temporary name: who writes it, and a random number."""
    return f"{Owner.this_process()}.{secrets.token_hex(4)}"
