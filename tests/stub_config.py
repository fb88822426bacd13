"""The configuration of a dataset that no backbone has made."""

from typing import Any

from probeselect.data.config import DatasetConfig, PinnedPrompts


def dataset_config(count: int, **fields: Any) -> DatasetConfig:
    """Of so many prompts; `fields` that matter to a test, and something for all others."""
    usual: dict[str, Any] = {
        "run": "", "n": 2, "rungs": (0.2, 0.4), "map_channels": 48, "map_side": 16, "previews": False,
        "image_format": "png", "groups_per_shard": 2, "batch_size": None, "model": "m", "revision": "", "weights": "w",
        "pipeline": "P", "denoiser": "D", "architecture": "a", "latent_channels": 2, "taps": ("tap", "x0"),
        "scheduler": {"class": "S"}, "arguments": {}, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    return DatasetConfig(**{"prompts": PinnedPrompts(count, "0"), **usual, **fields})
