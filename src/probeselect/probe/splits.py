"""Which prompts a probe was trained on, as digests beside its weights: so that nobody judges it by them."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from probeselect.data.sealed import canonical_json, sha256, write_file

Part = Literal["train", "val", "test"]
SEEN = "trained_on.txt"


def words_of(prompt: str) -> bytes:
    """A prompt as training and evaluation tell it from others: case and white space do not matter."""
    return " ".join(prompt.lower().split()).encode("utf-8", "surrogatepass")


def digest_of(prompt: str) -> str:
    """16 hexadecimal digits of a prompt's words."""
    return hashlib.sha256(words_of(prompt)).hexdigest()[:16]


def part_of(prompt: str, val_share: float, test_share: float) -> Part:
    """Which part of a dataset a prompt belongs to, by a hash of its words; case and white space do not matter."""
    place = int.from_bytes(hashlib.sha256(words_of(prompt)).digest()[:8], "big") / 2**64
    return "test" if place < test_share else "val" if place < test_share + val_share else "train"


def digest_of_all(prompts: Sequence[str]) -> str:
    """One digest of prompts and their order, by which a probe knows the dataset that it was trained on."""
    return sha256(canonical_json(list(prompts)))


def write_seen(folder: Path, prompts: Iterable[str]) -> None:
    """Write the digests of `prompts` beside a probe, sorted, one a line."""
    lines = sorted({digest_of(prompt) for prompt in prompts})
    write_file(folder / SEEN, "".join(f"{line}\n" for line in lines).encode())


def read_seen(folder: Path) -> frozenset[str] | None:
    """The digests beside a probe; None where there are none."""
    path = folder / SEEN
    return frozenset(path.read_text().split()) if path.is_file() else None
