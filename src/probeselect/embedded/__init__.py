"""The backbones that ship with the package: emoji scenes at 64 px, their captions, evaluators, probes and weights."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
SPRITES = FOLDER / "sprites"


@dataclass(frozen=True)
class Shipped:
    """A backbone that ships, its probe, and the guidance that both were made for."""

    pipeline: Path
    probe: Path
    guidance: float


SHIPPED = {
    "embedded": Shipped(WEIGHTS / "backbone", WEIGHTS / "probe", guidance=3.0),
    "embedded-mmdit": Shipped(WEIGHTS / "mmdit", WEIGHTS / "probe-mmdit", guidance=3.0),
}
