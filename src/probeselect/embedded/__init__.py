"""The backbones that ship with the package: emoji scenes at 64 px, their captions, evaluators, probes and weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped:
    """A backbone that ships, its probe, and the arguments of the pipeline that both were made for."""

    pipeline: Path
    probe: Path
    arguments: Mapping[str, Any]


SHIPPED = {
    "embedded": Shipped(WEIGHTS / "backbone", WEIGHTS / "probe", {"guidance_scale": 3.0}),
    "embedded-mmdit": Shipped(
        WEIGHTS / "mmdit",
        WEIGHTS / "probe-mmdit",
        {"guidance_scale": 3.0, "max_sequence_length": 1},  # of zeros: attention.py lets one stand for all
    ),
}


def shipped_probe(name: str, model: str) -> Path | None:
    """The folder of the probe that ships for `model`, if `name` is "embedded", or of the backbone called `name`."""
    if name == "embedded" and model in SHIPPED:
        return SHIPPED[model].probe
    return SHIPPED[name].probe if name in SHIPPED else None
