"""Anybody's function of pictures and prompts as an evaluator, and whatever may stand for one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators.base import Evaluator
from probeselect.evaluators.table import load_evaluator, parse_evaluator


class FunctionEvaluator:
    """A function of (pictures, prompts) that gives a reward for each; its name is the function's.

    def sharpness(pictures, prompts):
        return [variance_of_laplacian(picture) for picture in pictures]

    sampler("a cat", evaluators=[sharpness])

    """

    has_features = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")

    def features(self, images: Sequence[Any]) -> Tensor:
        raise ProbeSelectError(f"evaluator {self.name}: a function has no features, it can only be called")

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        raise ProbeSelectError(f"evaluator {self.name}: a function has no features, it can only be called")

    def __call__(self, images: Sequence[Any], prompts: Sequence[str]) -> Tensor:
        found = torch.as_tensor(self.function(images, list(prompts)), dtype=torch.float32).flatten()
        if len(found) != len(images):
            raise ProbeSelectError(f"evaluator {self.name}: gave {len(found)} rewards for {len(images)} pictures")
        return found.detach().cpu()


def as_evaluator(given: Any, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Evaluator:
    """An evaluator of what `evaluators=` takes: a name ("scene-check", "pickscore=FOLDER"), an Evaluator or a function.

    Raises UsageError for anything else, and as `load_evaluator` does.
    """
    if isinstance(given, str):
        name, weights = parse_evaluator(given)
        return load_evaluator(name, weights, device=device, dtype=dtype)
    if hasattr(given, "name") and (hasattr(given, "score") or callable(given)):  # a function has a __name__
        evaluator: Evaluator = given
        return evaluator
    if callable(given):
        return FunctionEvaluator(given)
    raise UsageError(f"evaluators: {given!r} is no name, no Evaluator and no function of (pictures, prompts)")
