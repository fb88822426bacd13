"""Stage `samples`: what a backbone draws, as a picture: a row of seeds for each of a few test prompts, not chosen."""

from pathlib import Path

from PIL import Image

from probeselect.core.candidates import candidates_of
from probeselect.embedded.captions import draw_prompts
from probeselect.rollout.rollout import rollout
from research.embedded.groups import load_source, sampling

CELL, SEEDS = 128, 8


def draw_samples(model: str, path: Path, rows: int = 6) -> list[str]:
    """Write the sheet of a backbone that ships; returns its prompts, a row each."""
    backbone = load_source(model)
    prompts = list(draw_prompts(rows, seed=5, split="test"))
    (stage,) = rollout(backbone, candidates_of(prompts, SEEDS), [], **sampling(model))
    sheet = Image.new("RGB", (SEEDS * CELL, rows * CELL))
    for i, picture in enumerate(stage.pictures or []):
        sheet.paste(picture.resize((CELL, CELL), Image.Resampling.BICUBIC), (i % SEEDS * CELL, i // SEEDS * CELL))
    sheet.save(path)
    return prompts
