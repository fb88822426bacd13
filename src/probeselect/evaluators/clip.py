"""Evaluators of the CLIP family: the cosine of image and text embedding, times a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel

from probeselect.evaluators.base import TransformersEvaluator


class ClipEvaluator(TransformersEvaluator):
    """reward = scale * cos(image, text); the features are the L2-normalised image embeddings [N, D]."""

    model_class = CLIPModel
    image_processor_class = CLIPImageProcessorPil

    def __init__(self, weights: str | Path, *, scale: float | None = 100.0, **options: Any) -> None:
        """`scale` None means the checkpoint's exp(logit_scale); for the rest see TransformersEvaluator."""
        super().__init__(weights, **options)
        self.scale = self.model.logit_scale.exp().item() if scale is None else scale

    @staticmethod
    def _image_sizes(side: int) -> dict[str, dict[str, int]]:
        return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}

    def _features(self, pixels: Tensor) -> Tensor:
        embeddings = self.model.get_image_features(pixels).pooler_output.float()  # [N, D]
        return F.normalize(embeddings, dim=-1)

    def _score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        distinct = list(dict.fromkeys(prompts))  # the candidates of a group share their prompt
        tokens = self._tokens(distinct, padding="max_length")
        text = self.model.get_text_features(**tokens).pooler_output.float()  # [distinct, D]
        text = text[[distinct.index(prompt) for prompt in prompts]]  # [N, D]
        return self.scale * F.cosine_similarity(features.float(), text)
