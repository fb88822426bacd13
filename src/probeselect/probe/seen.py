"""Which prompts a probe was trained on, as digests beside its weights: so that nobody judges it by them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from probeselect.data.sealed import write_file

SEEN = "trained_on.txt"


def words_of(prompt: str) -> bytes:
    """A prompt as training and evaluation tell it from others: case and white space do not matter."""
    return " ".join(prompt.lower().split()).encode("utf-8", "surrogatepass")


def digest_of(prompt: str) -> str:
    """16 hexadecimal digits of a prompt's words."""
    return hashlib.sha256(words_of(prompt)).hexdigest()[:16]


def write_seen(folder: Path, prompts: Iterable[str]) -> None:
    """Write the digests of `prompts` beside a probe, sorted, one a line."""
    lines = sorted({digest_of(prompt) for prompt in prompts})
    write_file(folder / SEEN, "".join(f"{line}\n" for line in lines).encode())


def read_seen(folder: Path) -> frozenset[str] | None:
    """The digests beside a probe; None where there are none."""
    path = folder / SEEN
    return frozenset(path.read_text().split()) if path.is_file() else None
