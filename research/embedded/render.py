"""Renders scenes of emoji sprites, and knows the truth of what it drew.

Sprites: Fluent Emoji by Microsoft (MIT, see sprites/LICENSE), 96 px, recoloured by hue where the noun allows.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from probeselect.embedded.captions import BACKGROUNDS, COLOURED_NOUNS, COLOURS, MAX_OBJECTS, Spec, Subject

SPRITES = Path(__file__).parent / "sprites"
IMAGE_SIZE = 64
_MARGIN = 1
_HUE = {"red": 0.99, "yellow": 0.135, "green": 0.36, "blue": 0.60, "purple": 0.78}
_BACKGROUND_RGB = {
    "white": (248, 248, 248), "gray": (148, 148, 152), "black": (24, 22, 24), "blue": (72, 122, 220),
    "green": (64, 160, 92), "yellow": (246, 214, 92), "orange": (250, 152, 58), "pink": (252, 164, 190),
}  # fmt: skip
_SIDES = {1: (30, 42), 2: (24, 32), 3: (21, 26)}  # px of a sprite, by how many objects share the picture
_SIDES_OF_SIZE = {"small": (20, 25), "large": (46, 56)}


@dataclass(frozen=True)
class Placed:
    """One drawn object: centre and side in px."""

    noun: str
    colour: str | None
    x: float
    y: float
    side: int


@dataclass(frozen=True)
class Scene:
    """The truth of one picture."""

    spec: Spec
    objects: tuple[Placed, ...]
    background: str


@cache
def _sprite(noun: str, colour: str | None, side: int) -> npt.NDArray[np.float32]:
    """Premultiplied RGBA in [0, 1], [side, side, 4]."""
    image = Image.open(SPRITES / f"{noun}.png").convert("RGBA")
    if colour is not None:
        image = _recolour(image, _HUE[colour])
    rgba = np.asarray(image, np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    planes = [Image.fromarray(rgba[..., i]).resize((side, side), Image.Resampling.LANCZOS) for i in range(4)]
    return np.stack([np.asarray(plane) for plane in planes], -1).clip(0, 1)


def _recolour(image: Image.Image, hue: float) -> Image.Image:
    """Turn the sprite's main hue to `hue`; grays stay gray."""
    rgba = np.asarray(image).copy()
    hsv = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).astype(np.int16)
    vivid = (hsv[..., 1] > 90) & (rgba[..., 3] > 128)
    main = np.bincount((hsv[..., 0][vivid] + 4) // 8 % 32, minlength=32).argmax() / 32  # the commonest hue
    near = np.abs((hsv[..., 0] / 255 - main + 0.5) % 1 - 0.5) < 0.12
    turned = hsv.copy()
    turned[..., 0] = np.where(near, (hsv[..., 0] + (hue - main) * 255) % 255, hsv[..., 0])
    rgb = np.asarray(Image.fromarray(turned.astype(np.uint8), "HSV").convert("RGB"))
    return Image.fromarray(np.concatenate([rgb, rgba[..., 3:]], -1), "RGBA")


def draw_scene(spec: Spec, rng: random.Random) -> Scene:
    """Place the objects of `spec` where its relation wants them, without overlap."""
    while True:  # a crowded draw that cannot be placed is drawn again
        objects = _place(spec, rng)
        if objects is not None:
            colours = {placed.colour for placed in objects}
            background = spec.background or rng.choice([name for name in BACKGROUNDS if name not in colours])
            return Scene(spec, objects, background)


def _place(spec: Spec, rng: random.Random) -> tuple[Placed, ...] | None:
    total = sum(subject.count for subject in spec.subjects)
    placed: list[tuple[int, Placed]] = []
    common = rng.randint(*_SIDES[min(total, MAX_OBJECTS)])
    for index, subject in enumerate(spec.subjects):
        colour = subject.colour or (rng.choice(COLOURS) if subject.noun in COLOURED_NOUNS else None)
        for _ in range(subject.count):
            side = rng.randint(*_SIDES_OF_SIZE[subject.size]) if subject.size else common + rng.randint(-1, 1)
            for _ in range(25):
                low, high = side / 2 + _MARGIN, IMAGE_SIZE - side / 2 - _MARGIN
                new = Placed(subject.noun, colour, rng.uniform(low, high), rng.uniform(low, high), side)
                if all(_apart(new, other) for _, other in placed) and (
                    index == 0 or all(related(spec.relation, o, new) for i, o in placed if i == 0)
                ):
                    placed.append((index, new))
                    break
            else:
                return None
    return tuple(p for _, p in placed)


def _apart(a: Placed, b: Placed) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) > 0.46 * (a.side + b.side)


def related(relation: str | None, a: Placed, b: Placed) -> bool:
    """Whether `a` clearly stands in `relation` to `b` (the offset along its axis is the larger one)."""
    if relation is None:
        return True
    dx, dy = b.x - a.x, b.y - a.y
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along > 0 and along > 1.15 * abs(across)


def render(scene: Scene, rng: random.Random) -> npt.NDArray[np.uint8]:
    """RGB picture [64, 64, 3] of a scene; `rng` draws the shade and gradient of the background."""
    base = np.array(_BACKGROUND_RGB[scene.background], np.float32) / 255
    base = (base * rng.uniform(0.95, 1.04) + rng.uniform(-0.01, 0.01)).clip(0, 1)
    ramp = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32) * (rng.choice((0, 1)) * rng.uniform(-0.09, 0.09))
    shade = ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
    canvas = np.broadcast_to(base, (IMAGE_SIZE, IMAGE_SIZE, 3)) * (1 + shade)
    canvas = canvas.clip(0, 1).astype(np.float32)
    for placed in scene.objects:
        sprite = _sprite(placed.noun, placed.colour, placed.side)
        top, left = round(placed.y - placed.side / 2), round(placed.x - placed.side / 2)
        window = canvas[max(top, 0) : top + placed.side, max(left, 0) : left + placed.side]
        cut = sprite[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1]]
        window *= 1 - cut[..., 3:]
        window += cut[..., :3]
    return (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8)


def subjects_shown(scene: Scene) -> tuple[Subject, ...]:
    """What is really there, as subjects (colour included)."""
    counts: dict[tuple[str, str | None], int] = {}
    for placed in scene.objects:
        counts[placed.noun, placed.colour] = counts.get((placed.noun, placed.colour), 0) + 1
    return tuple(Subject(noun, count, colour) for (noun, colour), count in counts.items())
