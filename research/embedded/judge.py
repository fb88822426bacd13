"""How well an evaluator tells a true caption from one that is wrong in one way, on held-out renders."""

import random

from PIL import Image

from probeselect.embedded.captions import caption, parse
from probeselect.evaluators.base import Evaluator
from research.embedded.negatives import ERRORS, wrong_spec
from research.embedded.state import draw_sample


def pair_accuracy(evaluator: Evaluator, pairs: int = 300) -> dict[str, float]:
    """Share of pairs per kind of error in which the true caption scores higher; renders of the test split."""
    accuracy = {}
    for error in ERRORS:
        rng = random.Random(f"judge:{error}")
        images: list[Image.Image] = []
        right: list[str] = []
        wrong: list[str] = []
        while len(images) < pairs:
            sample = draw_sample(rng, "test")
            spec = wrong_spec(parse(sample.caption), rng, error)
            if spec is None:
                continue
            pixels = ((sample.image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            images.append(Image.fromarray(pixels))
            right.append(sample.caption)
            wrong.append(caption(spec, rng))
        features = evaluator.features(images)
        better = evaluator.score(features, right) > evaluator.score(features, wrong)
        accuracy[error] = round(float(better.float().mean()), 4)
    return accuracy
