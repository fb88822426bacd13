"""Stage `detector`: what `scene-check` sees with, trained on renders alone (blurred and noisy ones among them)."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from probeselect.embedded.captions import BACKGROUNDS, COLOURS, NOUNS
from probeselect.evaluators.scene import CELL, GRID, MAP_SIZES, SIDE_UNIT, SceneDetector
from research.embedded.state import Log, Sample, TrainingState, draw_sample, rate_at, steps_of

CHANNELS = 64


def targets_of(samples: Iterable[Sample]) -> dict[str, Tensor]:
    """Truth on the grid: heat [N, nouns, 16, 16], and per cell the colour class (-1: none), side, background."""
    samples = list(samples)
    heat = torch.zeros(len(samples), len(NOUNS), GRID, GRID)
    colour = torch.full((len(samples), GRID, GRID), -1)
    side = torch.zeros(len(samples), GRID, GRID)
    axis = (torch.arange(GRID) + 0.5) * CELL
    for i, sample in enumerate(samples):
        for placed in sample.scene.objects:
            squared = (axis[:, None] - placed.y) ** 2 + (axis[None, :] - placed.x) ** 2  # [16, 16] px^2
            blob = torch.exp(-squared / (2 * CELL**2))
            row, column = (min(int(centre / CELL), GRID - 1) for centre in (placed.y, placed.x))
            blob[row, column] = 1.0
            noun = NOUNS.index(placed.noun)
            heat[i, noun] = torch.maximum(heat[i, noun], blob)
            near = blob > 0.5
            side[i][near] = placed.side / SIDE_UNIT
            if placed.colour:
                colour[i][near] = COLOURS.index(placed.colour)
    background = torch.tensor([BACKGROUNDS.index(s.scene.background) for s in samples])
    return {"heat": heat, "colour": colour, "side": side, "background": background}


def detector_loss(maps: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Focal loss on the centres (CenterNet, arXiv 1904.07850, Eq. 1), plain losses on the rest."""
    centres, colours, backgrounds, side = maps.split(MAP_SIZES, 1)
    heat = targets["heat"]
    p = centres.sigmoid()
    positive = heat == 1
    focal = torch.where(
        positive, -((1 - p) ** 2) * F.logsigmoid(centres), -((1 - heat) ** 4) * p**2 * F.logsigmoid(-centres)
    )
    loss = focal.sum() / positive.sum()
    near = targets["side"] > 0
    loss = loss + 2 * (side[:, 0][near] - targets["side"][near]).abs().mean()
    cells = targets["background"][:, None, None].expand(-1, GRID, GRID)
    loss = loss + 0.5 * F.cross_entropy(backgrounds, cells) + F.cross_entropy(backgrounds.mean((2, 3)), cells[:, 0, 0])
    if (targets["colour"] >= 0).any():
        loss = loss + F.cross_entropy(colours, targets["colour"], ignore_index=-1)
    return loss


def degrade(images: Tensor, rng: random.Random) -> Tensor:
    """Half of the batch blurred, all of it a little noisy: an autoencoder's pictures are softer than renders."""
    half = len(images) // 2
    soft = F.interpolate(images[:half], scale_factor=rng.uniform(0.4, 0.8), mode="bilinear", antialias=True)
    soft = F.interpolate(soft, size=images.shape[-2:], mode="bicubic")
    noisy = torch.cat([soft, images[half:]])
    return noisy + rng.uniform(0, 0.12) * torch.randn_like(noisy)


def train(work: Path, steps: int, batch: int = 48) -> SceneDetector:
    torch.manual_seed(4)
    module = SceneDetector(CHANNELS)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.01)
    state = TrainingState(work / "detector.safetensors", module, optimizer)
    log = Log(work / "detector.jsonl", steps)
    for step, rng in steps_of(state, steps, "detector"):
        samples = [draw_sample(rng) for _ in range(batch)]
        maps = module(degrade(torch.stack([s.image for s in samples]), rng))
        loss = detector_loss(maps, targets_of(samples))
        state.update(loss, rate_at(step, steps, peak=2e-3), max_norm=5.0)
        log.add(state.step, batch, loss=loss.item())
    state.use_ema()
    return module


def save(module: SceneDetector, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"channels": CHANNELS}) + "\n")
