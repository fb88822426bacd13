"""What a probe, a model or a collection is, as flat fields for `probeselect info`."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from probeselect.backbones.loading import load_backbone
from probeselect.core.version import VERSION
from probeselect.data.config import CONFIG as DATASET
from probeselect.data.dataset import Dataset
from probeselect.embedded import SHIPPED
from probeselect.probe.config import CONFIG
from probeselect.probe.files import load_probe


def describe(what: str) -> dict[str, Any]:
    """Fields of the probe, dataset or model named; an embedded backbone comes with its probe."""
    versions = {
        "probeselect": VERSION,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    folder = Path(what)
    if (folder / DATASET).is_file():
        return _dataset_fields(folder) | versions
    is_probe = (folder / CONFIG).is_file() and not (folder / "model_index.json").is_file()
    if is_probe:
        return _probe_fields(folder) | versions
    backbone = load_backbone(what, device="cpu")
    about = backbone.describe()
    fields = {
        "model": what,
        "pipeline": type(backbone.pipe).__name__,
        "denoiser": about.denoiser,
        "architecture": about.architecture,
        "taps": [tap.name for tap in backbone.taps],
        "latent_channels": about.latent_channels,
    }
    if what in SHIPPED:
        fields |= _probe_fields(SHIPPED[what].probe) | {"probe": "embedded"}
    return fields | versions


def _probe_fields(folder: Path) -> dict[str, Any]:
    config = load_probe(folder).config
    return {
        "probe": str(folder),
        "probe fits": f"{config.denoiser} {config.architecture} ({config.backbone})",
        "probe taps": ", ".join(config.taps),
        "probe rungs": ", ".join(f"{rung:g}" for rung in config.rungs),
        "probe heads": ", ".join(f"{head.evaluator} ({head.kind})" for head in config.heads),
    }


def _dataset_fields(folder: Path) -> dict[str, Any]:
    dataset = Dataset(folder)
    config, done = dataset.config, dataset.done()
    return {
        "dataset": str(folder),
        "model": config.model,
        "fits": f"{config.denoiser} {config.architecture}",
        "taps": ", ".join(config.taps),
        "rungs": ", ".join(f"{rung:g}" for rung in dataset.rungs),
        "prompts": f"{sum(map(dataset.groups_of, done))} of {config.prompts.count}, {dataset.n} candidates each",
        "shards missing": dataset.shard_count - len(done),
        "scores": ", ".join(
            f"{name} ({sum(dataset.scores(name, i).is_dir() for i in done)} of {len(done)} shards)"
            for name in dataset.evaluators
        ),
    }
