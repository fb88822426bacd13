"""Evaluators of the BLIP image-text retrieval models: contrastive (ITC) and matching (ITM)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval, BlipImageProcessorPil

from probeselect.evaluators.base import TransformersEvaluator


class BlipEvaluator(TransformersEvaluator):
    """The features are the vision model's last hidden state [N, 1 + patches, D]; the head makes the reward.

    itc: the cosine of the pair's projected first tokens, in [-1, 1].
    itm: the probability, in [0, 1], that image and text match, from a text encoder that attends to the image.
    """

    model_class = BlipForImageTextRetrieval
    image_processor_class = BlipImageProcessorPil

    def __init__(self, weights: str | Path, *, head: Literal["itc", "itm"] = "itm", **options: Any) -> None:
        """Choose the head; for the rest see TransformersEvaluator."""
        super().__init__(weights, **options)
        self.head = head

    @staticmethod
    def _image_sizes(side: int) -> dict[str, dict[str, int]]:
        return {"size": {"height": side, "width": side}}

    def _features(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.model.vision_model(pixels).last_hidden_state
        return hidden

    def _score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        image = features.to(self.model.dtype)  # [N, 1 + patches, D]
        # The text model takes 512 tokens; padding is masked, so no more of it than the batch needs.
        tokens = self._tokens(prompts, padding="longest")
        seen = {"encoder_hidden_states": image} if self.head == "itm" else {}
        text = self.model.text_encoder(**tokens, **seen).last_hidden_state[:, 0]  # [N, D]
        if self.head == "itm":
            return self.model.itm_head(text).float().softmax(-1)[:, 1]
        return F.cosine_similarity(self.model.vision_proj(image[:, 0]).float(), self.model.text_proj(text).float())
