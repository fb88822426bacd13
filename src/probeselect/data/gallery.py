"""The pictures of a dataset, found by prompt and seed."""

from pathlib import Path

from PIL import Image

from probeselect.data.dataset import Dataset
from probeselect.data.shards import ROWS_FILE, image_name, read_rows


class Gallery:
    """Opens finished pictures and previews; None for one that is not there."""

    def __init__(self, dataset: Dataset) -> None:
        self.format = dataset.config.image_format
        self.places: dict[tuple[str, int], tuple[Path, str, str, int]] = {}
        for shard in dataset.done():
            folder = dataset.shard(shard)
            rows = read_rows(folder / ROWS_FILE, ["prompt", "seed", "image", "prompt_id", "index"]).to_pylist()
            for row in rows:
                self.places[row["prompt"], row["seed"]] = (folder, row["image"], row["prompt_id"], row["index"])

    def finished(self, prompt: str, seed: int) -> Image.Image | None:
        folder, image, _, _ = self.places[prompt, seed]
        return _opened(folder / image) if image else None

    def preview(self, prompt: str, seed: int, rung: float) -> Image.Image | None:
        """The decoded x0-prediction at a rung, where `collect --previews` kept it."""
        folder, _, prompt_id, index = self.places[prompt, seed]
        return _opened(folder / image_name(prompt_id, index, self.format, rung))


def _opened(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return picture.convert("RGB")
