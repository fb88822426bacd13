"""The backbone that ships with the package: emoji scenes at 64 px, their captions, evaluators and weights."""

from pathlib import Path

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
SPRITES = FOLDER / "sprites"
