"""Pictures as numbers, from any output of a pipeline, and how far apart two are."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image

_FIELDS = ("images", "image", "frames", "videos", "rgb", "image_embeddings", "image_embeds")


def picture_of(output: Any, whole: bool = False) -> np.ndarray:
    """One candidate's picture, clip or latent as floats; 8 bits become [0, 1].

    whole: `output` is all that a pipeline gave for one candidate.
    """
    if whole:
        found = next((value for name in _FIELDS if (value := getattr(output, name, None)) is not None), output)
        found = found[0] if isinstance(found, tuple) else found
        output = found[0] if len(found) == 1 else list(found)
    if isinstance(output, list | tuple):
        return np.stack([picture_of(item) for item in output])
    if isinstance(output, Image.Image):
        return np.asarray(output).astype(np.float64) / 255
    if isinstance(output, torch.Tensor):
        return output.detach().double().numpy()
    return np.asarray(output).astype(np.float64)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest; infinite where shapes differ, or only one is a number."""
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        return math.inf
    return float(np.nanmax(np.abs(one - other), initial=0.0))
