"""`imagereward` (arXiv 2304.05977): BLIP reads the prompt looking at the image; linear layers make the reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BlipConfig, BlipPreTrainedModel, BlipTextModel, BlipVisionModel, CLIPImageProcessorPil

from probeselect.evaluators.base import TransformersEvaluator
from probeselect.evaluators.clip import centre_crop
from probeselect.evaluators.heads import linear_head

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's outputs, as published
TOKENS = 35  # the text is cut to this


class ImageRewardModel(BlipPreTrainedModel):
    """BLIP's vision and text model and a linear head; config.json gives its `head_widths`."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.head = linear_head(config.head_widths)
        self.post_init()


class ImageRewardEvaluator(TransformersEvaluator):
    """reward = (head(first token) - MEAN) / STD; the features are the vision model's states [N, 1 + patches, D].

    The first token is [CLS], as the published code leaves it; [ENC], which BLIP's own matching head starts with, is in
    the vocabulary but not used. The published code pads to 35 tokens and masks the padding; here texts are padded to
    the longest of the batch. Images are resized bicubically and centre-cropped. Rewards are about 0 +- 1.
    """

    model_class = ImageRewardModel
    image_processor_class = CLIPImageProcessorPil

    def __init__(self, weights: str | Path, **options: Any) -> None:
        """See TransformersEvaluator."""
        super().__init__(weights, **options)
        self.model.head.float()  # as published, whatever the rest

    _image_sizes = staticmethod(centre_crop)

    def _features(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.model.vision_model(pixels).last_hidden_state
        return states

    def _score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokens(prompts, padding="longest", at_most=TOKENS)
        seen = features.to(self.model.dtype)  # [N, 1 + patches, D]
        text = self.model.text_encoder(**tokens, encoder_hidden_states=seen).last_hidden_state[:, 0]  # [N, D]
        rewards: Tensor = self.model.head(text.float())[:, 0]
        return (rewards - MEAN) / STD
