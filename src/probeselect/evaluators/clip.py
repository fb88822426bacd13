"""Evaluators of the CLIP family: the cosine of image and text embedding, times a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel

from probeselect.evaluators.base import TransformersEvaluator


def centre_crop(side: int) -> dict[str, dict[str, int]]:
    """Return CLIP's image sizes: the shorter side becomes `side` px, then a centre crop."""
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def letterboxed(image: Image.Image, side: int) -> Image.Image:
    """Return the image resized bicubically so that its longer side is `side` px, in the middle of a black square."""
    width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
    square = Image.new("RGB", (side, side))
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((side - width) // 2, (side - height) // 2))
    return square


class ClipEvaluator(TransformersEvaluator):
    """reward = scale * cos(image, text); the features are the L2-normalised image embeddings [N, D].

    Sources: CLIPScore (arXiv 2104.08718, without its cut at 0), PickScore (2305.01569), HPSv2 (2306.09341) and ICT
    (2507.19002). open_clip's tokenizer, which HPSv2 and ICT use, also repairs broken Unicode and HTML entities in
    a prompt; CLIPTokenizer leaves them.
    """

    model_class = CLIPModel
    image_processor_class = CLIPImageProcessorPil

    def __init__(
        self, weights: str | Path, *, scale: float | None = 100.0, letterbox: bool = False, **options: Any
    ) -> None:
        """Choose scale and fit; for the rest see TransformersEvaluator.

        Args:
            weights: see TransformersEvaluator.
            scale: factor of the cosine; None means the checkpoint's exp(logit_scale).
            letterbox: the longer side fits and black fills the rest, as in the package hpsv2; else a centre crop.
                The two are one for square images.
            options: see TransformersEvaluator.
        """
        super().__init__(weights, **options)
        self.scale = self.model.logit_scale.exp().item() if scale is None else scale
        self.letterbox = letterbox

    _image_sizes = staticmethod(centre_crop)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        if self.letterbox:
            images = [letterboxed(image, self.side) for image in images]
        return super()._pixels(images)

    def _features(self, pixels: Tensor) -> Tensor:
        embeddings = self.model.get_image_features(pixels).pooler_output.float()  # [N, D]
        return F.normalize(embeddings, dim=-1)

    def _score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        distinct = list(dict.fromkeys(prompts))  # the candidates of a group share their prompt
        tokens = self._tokens(distinct, padding="max_length")
        text = self.model.get_text_features(**tokens).pooler_output.float()  # [distinct, D]
        text = text[[distinct.index(prompt) for prompt in prompts]]  # [N, D]
        return self.scale * F.cosine_similarity(features.float(), text)
