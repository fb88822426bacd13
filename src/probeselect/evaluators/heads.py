"""Evaluators with linear layers on an image embedding: the LAION aesthetic score, HP, and the product of ICT and HP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from probeselect.evaluators.base import TransformersEvaluator, check_pairs
from probeselect.evaluators.clip import ClipEvaluator, centre_crop


def linear_head(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of the given widths, e.g. [768, 1024, 128, 64, 16, 1], with nothing between them.

    The published heads have dropouts between, which do nothing in use, and no activations.
    """
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


class ClipHeadModel(CLIPVisionModelWithProjection):
    """CLIP's vision model with its projection, and a linear head; config.json gives its `head_widths`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.head = linear_head(config.head_widths)
        self.post_init()


class ClipHeadEvaluator(TransformersEvaluator):
    """reward = head(image embedding), or its sigmoid; the features are the embeddings [N, D]; prompts are ignored.

    Sources: github.com/christophschuhmann/improved-aesthetic-predictor (normalised embeddings, about 1 to 10) and
    HP of arXiv 2507.19002, github.com/BarretBa/ICTHP (embeddings as they are, sigmoid, in [0, 1]).
    """

    model_class = ClipHeadModel
    image_processor_class = CLIPImageProcessorPil
    reads_prompts = False

    def __init__(self, weights: str | Path, *, normalise: bool = True, sigmoid: bool = False, **options: Any) -> None:
        """Choose whether embeddings have length 1 and rewards pass a sigmoid; for the rest see the base class."""
        super().__init__(weights, **options)
        self.model.head.float()  # small, and rewards differ in its last digits
        self.normalise, self.sigmoid = normalise, sigmoid

    _image_sizes = staticmethod(centre_crop)

    def _features(self, pixels: Tensor) -> Tensor:
        embeddings = self.model(pixels).image_embeds.float()  # [N, D]
        return F.normalize(embeddings, dim=-1) if self.normalise else embeddings

    def _score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = self.model.head(features.float())[:, 0]  # [N]
        return rewards.sigmoid() if self.sigmoid else rewards


class IctHpEvaluator:
    """reward = ICT * HP (arXiv 2507.19002); the features [N, D + D] are ICT's and HP's embeddings.

    `weights` holds both: the folder of ICT as WEIGHTS/ict, that of HP as WEIGHTS/hp.
    """

    name = ""

    def __init__(self, weights: str | Path, **options: Any) -> None:
        """Load both; for the options and errors see TransformersEvaluator."""
        self.ict = ClipEvaluator(Path(weights) / "ict", scale=1.0, **options)
        self.hp = ClipHeadEvaluator(Path(weights) / "hp", normalise=False, sigmoid=True, **options)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features [N, D + D] of images of any size and mode. Raises UsageError without images."""
        return torch.cat([self.ict.features(images), self.hp.features(images)], -1)

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N], in [-1, 1]. Raises UsageError unless there are N prompts."""
        check_pairs(features, prompts)
        ict, hp = features.tensor_split([self.ict.model.config.projection_dim], -1)
        return self.ict.score(ict, prompts) * self.hp.score(hp, prompts)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N] of N images. Raises UsageError unless there are N prompts."""
        check_pairs(images, prompts)
        return self.ict(images, prompts) * self.hp(images, prompts)
