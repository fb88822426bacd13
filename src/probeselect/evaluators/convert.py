"""Turns published pickles into a folder that the evaluator's row loads: safetensors, config.json, tokenizer, images.

Knows files, digests and the row's data; names and shapes are the business of layouts.py. A pickle is only ever read in
a process of its own (unpickle.py), after its digest is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators.layouts import HeadWidths, State
from probeselect.evaluators.table import EVALUATORS, Published, evaluator_names, load_evaluator, where_from

WEIGHTS, CONFIG, IMAGES = "model.safetensors", "config.json", "preprocessor_config.json"
TOKENIZER = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class Conversion:
    """What `convert` made."""

    folder: Path
    sha256: Mapping[str, str]  # of each published file, by its name in the row


def convert(
    name: str,
    file: str | Path,
    out: str | Path,
    *,
    processor: str | Path | None = None,
    sha256: str | None = None,
    head_widths: HeadWidths | None = None,
    say: Callable[[str], object] = print,
) -> Conversion:
    """Make the folder `out`, which `load_evaluator(name, out)` loads; it is there only if that succeeds.

    Args:
        name: a row of the table that is published as a pickle.
        file: the published file; where the row has several, the folder that holds them under their names there.
        out: the folder to make; must not exist.
        processor: folder or hub id of tokenizer and image processor, and of all else the row takes from there;
            None means the row's own hub id.
        sha256: digest that the file must have, instead of the row's.
        head_widths: of the attention heads of text and vision model, instead of the row's; for other model sizes.
        say: is told, line by line, the digest of each file and what is done.

    Raises:
        UsageError: a name that is not published as a pickle, an `out` that exists, a digest for several files, head
            widths for a row that does not read sizes from shapes.
        ProbeSelectError: a file that is not there, has another digest, is no pickle of plain tensors, or does not fit
            the row's model: the line names the key.
    """
    published = _published(name)
    paths = _paths(name, published, Path(file))
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out}: exists already, name a folder to make")
    if sha256 is not None and len(paths) > 1:
        raise UsageError(f"sha256: {name} has {len(paths)} files, the option is for one")
    if head_widths is not None and "head_widths" not in published.settings:
        raise UsageError(f"head_widths: {name} takes its sizes from the processor's {CONFIG}, not from the option")
    known = {part: sha256 or digest for part, digest in published.files.items()}
    digests = {part: checked_sha256(path, known[part], say) for part, path in paths.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        source = _processor_folder(processor or published.processor, published)
        folder = Path(temporary) / "folder"
        folder.mkdir()
        states = [_read_safetensors(source / WEIGHTS)] if published.backbone_of_processor else []
        for i, path in enumerate(paths.values()):  # a file each: the tensors stay mapped to theirs
            say(f"{path}: read by torch.load(weights_only=True) in a process of its own")
            states.append(unpickled(path, Path(temporary) / f"{i}.safetensors"))
        settings = {**published.settings, **({"head_widths": head_widths} if head_widths else {})}
        _write(folder, states, published.layout, settings, source, ", ".join(map(str, paths.values())))
        states.clear()
        try:
            load_evaluator(name, folder)
        except ProbeSelectError as error:
            made_of = f"{file} (with {processor or published.processor})"
            raise ProbeSelectError(str(error.__cause__ or error).replace(str(folder), made_of)) from error
        folder.rename(out)
    say(f"{out}: made; use it as {name}={out}")
    return Conversion(out, digests)


def checked_sha256(path: Path, known: str | None, say: Callable[[str], object]) -> str:
    """Return the file's SHA-256 in hexadecimal, and say it. Raises ProbeSelectError if `known` is another one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if known is None:
        say(f"{path}: sha256 {found}; which one it should have is not known here, compare it with its publisher's")
    elif found != known.lower():
        raise ProbeSelectError(f"{path}: has sha256 {found}, must be {known.lower()}: another file, or a broken copy")
    else:
        say(f"{path}: sha256 {found}, as it should be")
    return found


def unpickled(path: Path, temporary: Path) -> State:
    """Return the tensors of a pickle, read in another process and handed over as safetensors in `temporary`.

    Raises ProbeSelectError if it holds anything but tensors and plain containers; nothing of it is run.
    """
    # -P: a file named like a module of ours, in the working folder, must not be imported instead.
    command = [sys.executable, "-P", "-m", "probeselect.evaluators.unpickle", str(path.absolute()), str(temporary)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"])[-1]
        raise ProbeSelectError(f"{path}: not a pickle of plain tensors, and nothing of it was run ({reason})")
    return _read_safetensors(temporary)


def _published(name: str) -> Published:
    row = EVALUATORS.get(name)
    if row is None:
        raise UsageError(f"unknown evaluator {name!r}; valid names: {', '.join(evaluator_names())}")
    if row.published is None:
        raise UsageError(f"evaluator {name}: {where_from(name)}")
    return row.published


def _paths(name: str, published: Published, file: Path) -> dict[str, Path]:
    """Return the published files: their name in the row -> where they are."""
    if len(published.files) == 1 and not file.is_dir():
        paths = {next(iter(published.files)): file}
    else:
        paths = {part: file / part for part in published.files}
    for path in paths.values():
        if not path.is_file():
            raise ProbeSelectError(f"{path}: no such file; {name} is {where_from(name)}")
    return paths


def _processor_folder(source: str | Path, published: Published) -> Path:
    """Return the folder with tokenizer and image processor, fetched from the hub if it is not there."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    wanted = [*TOKENIZER, IMAGES, CONFIG, *([WEIGHTS] if published.backbone_of_processor else [])]
    try:
        return Path(snapshot_download(str(source), allow_patterns=wanted))
    except Exception as error:  # whatever the hub's client raises over the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProbeSelectError(f"processor {source}: no such folder, and the hub did not give it ({reason})") from error


def _write(
    folder: Path, states: list[State], layout: str, settings: Mapping[str, Any], source: Path, named: str
) -> None:
    module, function = layout.split(":")
    try:
        config, tensors = getattr(import_module(module), function)(*states, **settings)
    except ProbeSelectError as error:
        raise ProbeSelectError(f"{named}: {error}") from error
    for file in (*TOKENIZER, IMAGES, CONFIG):
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    if not (folder / IMAGES).is_file():  # a tokenizer's own repository has none
        from transformers import CLIPImageProcessorPil

        CLIPImageProcessorPil().save_pretrained(folder)  # bicubic, centre crop, CLIP's mean and deviation


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ProbeSelectError(f"{path}: cannot be read ({error})") from error
