"""`scene-check`: a small detector and the rules of the caption, in the spirit of GenEval (arXiv 2310.11513).

The detector turns a 64 px picture into 16 x 16 maps of evidence: where each noun's centre is, of which colour and
size, before which background. The rules turn evidence and caption into facts ("two dogs", "the dogs are above the
book") with a credit in [0, 1] each; the reward is their geometric mean. All of it is differentiable, so a probe that
predicts the maps of the finished picture is scored by the same rules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from probeselect.core.errors import ProbeSelectError
from probeselect.core.files import read_json
from probeselect.embedded import WEIGHTS
from probeselect.embedded.captions import BACKGROUNDS, COLOURS, COUNTS, NOUNS, SIZES, Spec, Subject, parse

IMAGE_SIZE = 64
GRID = 16
CELL = IMAGE_SIZE / GRID  # px
# The maps, in order: noun centres (logits), colours (logits), backgrounds (logits), side of the object (px / 32).
MAP_SIZES = (len(NOUNS), len(COLOURS), len(BACKGROUNDS), 1)
SIDE_UNIT = 32.0
MAX_PEAKS = 5  # objects of one noun that are told apart
LEAST_CREDIT = 0.02  # of a fact that fails outright: keeps the geometric mean graded
NEARLY_RIGHT_COUNT = 0.15  # credit of being one off, if any is there


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class SceneDetector(nn.Module):
    """Picture [N, 3, 64, 64] in [-1, 1] -> maps of evidence [N, sum(MAP_SIZES), 16, 16]."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels // 2, channels, 4, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(*(_Residual(channels, dilation) for dilation in (1, 2, 3, 1)))
        to_maps = nn.Conv2d(channels, sum(MAP_SIZES), 1)
        nn.init.constant_(to_maps.get_parameter("bias")[: len(NOUNS)], -4.0)  # centres are rare
        self.head = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), to_maps)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)))


@dataclass(frozen=True)
class Evidence:
    """What the maps hold, per picture and noun; K = MAX_PEAKS strongest centres of each noun."""

    present: Tensor  # [N, nouns, K] probability that the k-th centre is an object
    x: Tensor  # [N, nouns, K] px
    y: Tensor  # [N, nouns, K] px
    colour: Tensor  # [N, nouns, K, colours] probabilities
    side: Tensor  # [N, nouns, K] px
    count: Tensor  # [N, nouns, K + 1] probability of that many objects
    background: Tensor  # [N, backgrounds] probabilities


def read_maps(maps: Tensor) -> Evidence:
    """maps [N, sum(MAP_SIZES), 16, 16] -> Evidence."""
    centres, colours, backgrounds, side = maps.split(MAP_SIZES, 1)
    heat = centres.sigmoid()  # [N, nouns, 16, 16]
    strongest = F.max_pool2d(heat.amax(1, keepdim=True), 5, stride=1, padding=2)  # no two objects stand so close
    peaks = torch.where(heat >= strongest, heat, 0.0).flatten(2)  # [N, nouns, 256]
    present, where = peaks.topk(MAX_PEAKS, dim=2)  # [N, nouns, K]
    rows, columns = where // GRID, where % GRID

    def at(values: Tensor) -> Tensor:  # [N, C, 16, 16] -> [N, nouns, K, C]
        flat = values.flatten(2).transpose(1, 2)  # [N, 256, C]
        index = where.flatten(1).unsqueeze(2).expand(-1, -1, flat.shape[2])
        return flat.gather(1, index).view(*where.shape, -1)

    return Evidence(
        present=present,
        x=(columns + 0.5) * CELL,
        y=(rows + 0.5) * CELL,
        colour=at(colours).softmax(-1),
        side=at(side)[..., 0] * SIDE_UNIT,
        count=_count_distribution(present),
        background=backgrounds.mean((2, 3)).softmax(-1),
    )


def _count_distribution(present: Tensor) -> Tensor:
    """Poisson-binomial distribution of how many independent events happen; [..., K] -> [..., K + 1]."""
    distribution = torch.cat([torch.ones_like(present[..., :1]), torch.zeros_like(present)], -1)
    for p in present.unbind(-1):
        p = p[..., None]
        one_more = F.pad(distribution[..., :-1], (1, 0))
        distribution = distribution * (1 - p) + one_more * p
    return distribution


@dataclass(frozen=True)
class Fact:
    """One claim of the caption: its credit, and what to say when the picture does not meet it."""

    claim: str
    credit: Tensor  # scalar in [0, 1]
    complaint: str


def facts(spec: Spec, evidence: Evidence, i: int) -> Iterator[Fact]:
    """Yield the facts of a caption for picture `i`."""
    for subject in spec.subjects:
        yield _count_fact(subject, evidence.count[i, NOUNS.index(subject.noun)])
        if subject.colour:
            yield _colour_fact(subject, evidence, i)
        if subject.size:
            yield _size_fact(subject, evidence, i)
    if spec.relation:
        yield _relation_fact(spec, evidence, i)
    if spec.background:
        probabilities = evidence.background[i]
        seen = BACKGROUNDS[int(probabilities.argmax())]
        yield Fact(
            f"{spec.background} background",
            probabilities[BACKGROUNDS.index(spec.background)],
            f"the background is {seen}, not {spec.background}",
        )
    yield _nothing_else_fact(spec, evidence.present[i])


def _plural(count: int, noun: str) -> str:
    return f"{COUNTS[count] if count < len(COUNTS) else count} {noun}{'' if count == 1 else 's'}"


def _count_fact(subject: Subject, distribution: Tensor) -> Fact:
    wanted, seen = subject.count, int(distribution.argmax())
    near = [c for c in (wanted - 1, wanted + 1) if 1 <= c < len(distribution)]
    credit = distribution[wanted] + NEARLY_RIGHT_COUNT * distribution[near].sum()
    if seen < wanted and seen:
        complaint = f"{COUNTS[seen]} of {_plural(wanted, subject.noun)}"
    else:
        complaint = f"{_plural(seen, subject.noun)}, not {_plural(wanted, subject.noun).split()[0]}"
    return Fact(_plural(wanted, subject.noun), credit, complaint)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / (weights.sum() + 1e-3)


def _colour_fact(subject: Subject, evidence: Evidence, i: int) -> Fact:
    noun, wanted = NOUNS.index(subject.noun), COLOURS.index(subject.colour or "")
    present, colour = evidence.present[i, noun], evidence.colour[i, noun]  # [K], [K, colours]
    seen = COLOURS[int((colour * present[:, None]).sum(0).argmax())]
    complaint = f"the {subject.noun} is {seen}, not {subject.colour}" if seen != subject.colour else "unclear colour"
    return Fact(f"{subject.colour} {subject.noun}", _weighted(colour[:, wanted], present), complaint)


def _size_fact(subject: Subject, evidence: Evidence, i: int) -> Fact:
    noun = NOUNS.index(subject.noun)
    side = evidence.side[i, noun]
    fits = torch.sigmoid((side - 43) / 1.5 if subject.size == SIZES[1] else (27 - side) / 1.5)
    credit = _weighted(fits, evidence.present[i, noun])
    return Fact(f"{subject.size} {subject.noun}", credit, f"the {subject.noun} is not {subject.size}")


def _relation_fact(spec: Spec, evidence: Evidence, i: int) -> Fact:
    a, b = (NOUNS.index(subject.noun) for subject in spec.subjects)
    dx = evidence.x[i, b][None, :] - evidence.x[i, a][:, None]  # [K, K]
    dy = evidence.y[i, b][None, :] - evidence.y[i, a][:, None]
    sign = 1 if spec.relation in ("left of", "above") else -1
    along, across = (dx, dy) if spec.relation in ("left of", "right of") else (dy, dx)
    holds = torch.sigmoid((sign * along - across.abs()) / 2.5)
    weights = evidence.present[i, a][:, None] * evidence.present[i, b][None, :]
    first, second = (subject.noun for subject in spec.subjects)
    claim = f"{first} {spec.relation} {second}"
    return Fact(claim, _weighted(holds, weights), f"not {claim}")


def _nothing_else_fact(spec: Spec, present: Tensor) -> Fact:
    others = [n for n, noun in enumerate(NOUNS) if noun not in {subject.noun for subject in spec.subjects}]
    strays = present[others]  # [nouns, K]
    stray = NOUNS[others[int(strays[:, 0].argmax())]]
    return Fact("nothing else", (1 - strays).prod(), f"a stray {stray}")


class SceneConfig(msgspec.Struct):
    """config.json of the detector."""

    channels: Annotated[int, Meta(ge=8, le=4096, multiple_of=8)]


class SceneCheck:
    """The evaluator: reward in [0.02, 1], higher is better; reasons in words."""

    name = "scene-check"

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        folder = Path(folder or WEIGHTS / "scene-check")
        if not (folder / "model.safetensors").is_file():
            raise ProbeSelectError(f"{folder}: no scene-check weights (model.safetensors) there")
        config = read_json(folder / "config.json", SceneConfig)
        self.detector = SceneDetector(config.channels).to(device).eval()
        self.detector.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises UsageError for a prompt that names no noun of the grammar."""
        for prompt in prompts:
            parse(prompt)

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Maps of evidence [N, sum(MAP_SIZES), 16, 16] of pictures of any size."""
        sized = [image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in sized])).permute(0, 3, 1, 2)
        device = next(self.detector.parameters()).device
        maps: Tensor = self.detector(pixels.to(device).float() / 127.5 - 1)
        return maps

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [N] of maps [N, ...]; differentiable in the maps. Raises UsageError on a prompt without a noun."""
        evidence = read_maps(features)
        rewards = []
        for i, prompt in enumerate(prompts):
            credits = torch.stack([fact.credit for fact in facts(parse(prompt), evidence, i)])
            rewards.append((LEAST_CREDIT + (1 - LEAST_CREDIT) * credits).log().mean().exp())
        return torch.stack(rewards)

    def feature_distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [N] between the evidence of predicted maps and of a picture's, both [N, ...].

        Logits far below zero all mean "nothing there", so their squared difference says little; a proper score of
        probabilities makes a doubtful object a doubtful one, not a faint one everywhere. A centre that is one cell
        off counts as found: the rules do not look closer.
        """
        centres, colours, backgrounds, side = predicted.split(MAP_SIZES, 1)
        t_centres, t_colours, t_backgrounds, t_side = target.split(MAP_SIZES, 1)
        heat = F.max_pool2d(t_centres.sigmoid(), 3, stride=1, padding=1)  # [N, nouns, 16, 16]
        near = heat.amax(1)  # [N, 16, 16]
        found = F.binary_cross_entropy_with_logits(centres, heat, reduction="none").sum((1, 2, 3))
        colour = (near * -(t_colours.softmax(1) * colours.log_softmax(1)).sum(1)).sum((1, 2))
        size = (near * (side - t_side)[:, 0].abs()).sum((1, 2))
        seen, wanted = backgrounds.mean((2, 3)), t_backgrounds.mean((2, 3)).softmax(1)
        background = -(wanted * seen.log_softmax(1)).sum(1)
        return (found + 0.5 * colour + size) / 10 + 0.5 * background

    def reasons(self, features: Tensor, prompts: Sequence[str]) -> list[list[str]]:
        """What each picture lacks, in words; empty where every fact has more than half of its credit."""
        evidence = read_maps(features)
        return [
            [fact.complaint for fact in facts(parse(prompt), evidence, i) if fact.credit < 0.5]
            for i, prompt in enumerate(prompts)
        ]

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return self.score(self.features(images), prompts)
