"""The pictures of a dataset, found by prompt and seed."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from probeselect.core.candidates import Candidate
from probeselect.data.shards import ROWS_FILE, image_name, read_rows


class Gallery:
    """Opens finished pictures and previews of some shards; None for one that is not there."""

    def __init__(self, shards: Sequence[Path], image_format: str) -> None:
        self.shards, self.format = shards, image_format

    @cached_property
    def places(self) -> dict[tuple[str, int], tuple[Path, str, str, int]]:
        """(prompt, seed) -> shard, name of the finished picture, id of the prompt, index in the group."""
        columns = ["prompt", "seed", "image", "prompt_id", "index"]
        return {
            (row["prompt"], row["seed"]): (folder, row["image"], row["prompt_id"], row["index"])
            for folder in self.shards
            for row in read_rows(folder / ROWS_FILE, columns).to_pylist()
        }

    def finished(self, prompt: str, seed: int) -> Image.Image | None:
        folder, image, _, _ = self.places[prompt, seed]
        return _opened(folder / image) if image else None

    def preview(self, prompt: str, seed: int, rung: float) -> Image.Image | None:
        """The decoded x0-prediction at a rung, where `collect --previews` kept it."""
        folder, _, prompt_id, index = self.places[prompt, seed]
        return _opened(folder / image_name(prompt_id, index, self.format, rung))


class Previews(Sequence[Any]):
    """Previews of some candidates at a rung, each opened when it is asked for."""

    def __init__(self, gallery: Gallery, candidates: Sequence[Candidate], rung: float) -> None:
        self.gallery, self.candidates, self.rung = gallery, candidates, rung

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, place: Any) -> Any:
        candidate = self.candidates[place]
        return self.gallery.preview(candidate.prompt, candidate.seed, self.rung)


def _opened(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return picture.convert("RGB")
