"""What an evaluator is, and what all evaluators on transformers models share: strict loading, text, batches.

Does not know any formula (clip.py, heads.py, blip.py) or name (table.py). Importing this does not import transformers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.fingerprint import fingerprint
from probeselect.evaluators.pictures import Picture, frame_count, frames_of, is_clip, sampled

FRAMES_JUDGED = 8  # of a clip, evenly spaced, the first and the last among them


class Evaluator(Protocol):
    """Rewards finished images; N images, one prompt each, higher is better.

    It may also have
    - `check_prompts(prompts)`: raises UsageError for a prompt it cannot judge; asked before any image is made;
    - `reasons(features, prompts) -> list[list[str]]`: what each image lacks, in words;
    - `feature_distance(predicted, target) -> Tensor [N]`: what a distilled probe makes small, where the mean square
      of the difference is not a good measure of it;
    - `has_features = False`: it can only be called; `features` and `score` raise ProbeSelectError.
    """

    name: str

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return what it sees in the images, [N, ...]: this is what a distilled probe learns to predict."""
        ...

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N] of features [N, ...], differentiable in the features."""
        ...

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N] of the images, without gradients."""
        ...


def check_prompts(judge: object, prompts: Sequence[str]) -> None:
    """Raise UsageError for a prompt that an evaluator or scorer cannot judge, where it can tell."""
    getattr(judge, "check_prompts", lambda _: None)(prompts)


def has_features(evaluator: Evaluator) -> bool:
    """Return whether an evaluator has features, which a probe can learn to predict; some can only be called."""
    return bool(getattr(evaluator, "has_features", True))


@dataclass(frozen=True)
class Judgement:
    """What an evaluator says of N pictures."""

    rewards: Tensor  # [N]; of a clip the mean of its judged frames, NaN where one of them has none
    features: Tensor | None  # [N, ...]; None where the evaluator has none, or one of the pictures is a clip
    reasons: list[list[str]]  # of each picture: what a still lacks, the worst frame of a clip; often empty


def judged(evaluator: Evaluator, pictures: Sequence[Picture], prompts: Sequence[str]) -> Judgement:
    """Return what an evaluator says of N pictures, without gradients: stills or clips, in any output type.

    Of a clip FRAMES_JUDGED frames are judged; the frames of all clips go to the evaluator in one call.

    Raises UsageError for what is no picture (latents, values outside [0, 1]), and unless there is a prompt for each.
    """
    features, rewards, lines = _seen(evaluator, pictures, prompts)
    tell = getattr(evaluator, "reasons", None)
    reasons = tell(features, prompts) if tell and features is not None else [[] for _ in prompts]
    return Judgement(rewards, features, [[line] if line else why for line, why in zip(lines, reasons, strict=True)])


def judge(evaluator: Evaluator, pictures: Sequence[Picture], prompts: Sequence[str]) -> tuple[Tensor | None, Tensor]:
    """Return features and rewards of N pictures, as in `Judgement`, where the reasons are not asked for."""
    features, rewards, _ = _seen(evaluator, pictures, prompts)
    return features, rewards


def _seen(
    evaluator: Evaluator, pictures: Sequence[Picture], prompts: Sequence[str]
) -> tuple[Tensor | None, Tensor, list[str]]:
    """Return features, rewards and, of every clip, a line that names its worst frame ("" for a still)."""
    check_pairs(pictures, prompts)
    clips = [is_clip(picture) for picture in pictures]
    frames = [frames_of(picture, FRAMES_JUDGED) for picture in pictures]
    images = [frame for mine in frames for frame in mine]
    if not any(clips) and has_features(evaluator):
        features = evaluator.features(images)
        with torch.no_grad():
            return features, evaluator.score(features, prompts), [""] * len(pictures)
    rewards = evaluator(images, [prompt for prompt, mine in zip(prompts, frames, strict=True) for _ in mine])
    if not any(clips):
        return None, rewards, [""] * len(pictures)
    by_picture = rewards.split([len(mine) for mine in frames])
    lines = [
        worst_frame(each.tolist(), frame_count(picture)) if clip else ""
        for each, picture, clip in zip(by_picture, pictures, clips, strict=True)
    ]
    return None, torch.stack([each.mean() for each in by_picture]), lines


def worst_frame(rewards: Sequence[float], count: int) -> str:
    """Return one line that names the worst of a clip's judged frames; `count` is how many frames it has."""
    missing = [i for i, reward in enumerate(rewards) if not math.isfinite(reward)]
    worst = missing[0] if missing else min(range(len(rewards)), key=rewards.__getitem__)
    number = sampled(count, FRAMES_JUDGED)[worst] + 1
    return f"worst frame {number} of {count}: " + ("no reward" if missing else f"{rewards[worst]:.3g}")


def identity(evaluator: object) -> str:
    """Return what tells an evaluator's weights from others: a digest of its modules', or its address."""
    found, waiting = {}, [("", evaluator)]
    while waiting:
        name, thing = waiting.pop()
        for key, value in vars(thing).items():
            if isinstance(value, nn.Module):
                found[f"{name}{key}"] = value
            elif type(value).__module__.startswith("probeselect.evaluators"):  # one that is made of others
                waiting.append((f"{name}{key}.", value))
    return fingerprint(found) if found else str(getattr(evaluator, "address", ""))


class TransformersEvaluator(ABC):
    """An evaluator on one frozen transformers model.

    Rows whose values are not all finite come back as NaN; nothing is raised for them.
    """

    name: str = ""
    model_class: ClassVar[Any]
    image_processor_class: ClassVar[Any]
    reads_prompts: ClassVar[bool] = True  # else there is no tokenizer

    def __init__(
        self,
        weights: str | Path,
        *,
        processor: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        """Load model, tokenizer and image processor.

        Args:
            weights: a folder in the transformers layout that holds all it needs, or a hub id.
            processor: hub id of tokenizer and image processor, where the hub id of the model has none.
            device: where the model runs; features and rewards come back there, in float32.
            dtype: of the model's weights.
            batch_size: images, or pairs of image and prompt, that the model sees at once.

        Raises:
            ProbeSelectError: a file is not there, cannot be read, or does not fit the model.
            UsageError: `batch_size` is below 1.
        """
        self.batch_size = checked_batch_size(batch_size)
        source = weights if processor is None or Path(weights).is_dir() else processor
        self.model = _load_strictly(self.model_class, weights, dtype).to(device).eval().requires_grad_(False)
        if self.reads_prompts:
            self.tokenizer = _read_tokenizer(source, self.model.config.text_config.vocab_size)
        self.side: int = getattr(self.model.config, "vision_config", self.model.config).image_size  # px
        self.image_processor = _read(self.image_processor_class.from_pretrained, source, **self._image_sizes(self.side))

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features [N, ...] of images of any size and mode. Raises UsageError without images."""
        check_pairs(images)
        parts = [self._features(self._pixels(images[rows])) for rows in self._batches(len(images))]
        return _nan_rows(torch.cat(parts).float())

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N] of features [N, ...]. Raises UsageError unless there are N prompts."""
        check_pairs(features, prompts)
        features = features.to(self.model.device)
        parts = [self._score(features[rows], prompts[rows]) for rows in self._batches(len(prompts))]
        return _nan_rows(torch.cat(parts).float())

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N] of N images. Raises UsageError unless there are N prompts."""
        check_pairs(images, prompts)
        # Batch by batch, for the features of many images at once may be large.
        batches = self._batches(len(images))
        return torch.cat([self.score(self.features(images[rows]), prompts[rows]) for rows in batches])

    @staticmethod
    @abstractmethod
    def _image_sizes(side: int) -> dict[str, dict[str, int]]:
        """Return the image processor's settings for a model that takes side x side px."""

    @abstractmethod
    def _features(self, pixels: Tensor) -> Tensor:
        """Return the features [N, ...] of preprocessed images [N, 3, side, side]."""

    @abstractmethod
    def _score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N] of one batch."""

    def _batches(self, count: int) -> list[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, count, self.batch_size)]

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.device)

    def _tokens(self, prompts: Sequence[str], padding: str, at_most: int | None = None) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, [N, L] each, cut to `at_most` and to what the text model takes."""
        longest = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        longest = min(longest, at_most or longest)
        tokens = self.tokenizer(
            list(prompts), padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        )
        return {key: tokens[key].to(self.model.device) for key in ("input_ids", "attention_mask")}


def _load_strictly(model_class: Any, weights: str | Path, dtype: torch.dtype) -> Any:
    """Return the model, sure that its keys and those of the checkpoint are the same."""
    model, info = _read(
        model_class.from_pretrained,
        weights,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, by name, with the other misfits
    )
    misfits = {
        "missing": sorted(info["missing_keys"]),
        "surplus": sorted(info["unexpected_keys"]),
        "wrong shape": sorted(key for key, *_ in info["mismatched_keys"]),
    }
    found = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in misfits.items() if keys]
    if found:
        raise ProbeSelectError(f"{weights} does not fit {model_class.__name__}: keys {'; '.join(found)}")
    return model


def _read_tokenizer(source: str | Path, known: int) -> Any:
    """Return the tokenizer of a model that takes `known` tokens."""
    from transformers import AutoTokenizer

    # Never ask at the keyboard whether code from the hub may run: it may not.
    tokenizer = _read(AutoTokenizer.from_pretrained, source, trust_remote_code=False)
    words = len(tokenizer)
    # Where the files are missing, transformers makes a tokenizer of special tokens only.
    if not len(tokenizer.all_special_ids) < words <= known:
        raise ProbeSelectError(f"{source}: its tokenizer has {words} tokens, the model takes {known}")
    return tokenizer


def _read(from_pretrained: Callable[..., Any], source: str | Path, **options: Any) -> Any:
    """Return what transformers reads from a folder or the hub; an error becomes one line."""
    if isinstance(source, Path) and not source.is_dir():
        raise ProbeSelectError(f"{source}: no such folder")
    try:
        return from_pretrained(source, **options)
    except Exception as error:  # of almost any type: it depends on which file is bad, and how
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ProbeSelectError(f"{source} cannot be read ({reason})") from error


def checked_batch_size(batch_size: int) -> int:
    """Return the batch size. Raises UsageError if it is below 1."""
    if batch_size < 1:
        raise UsageError(f"batch_size: got {batch_size}, must be at least 1")
    return batch_size


def check_pairs(images: Sequence[Any] | Tensor, prompts: Sequence[str] | None = None) -> None:
    """Raise UsageError unless there are images (or features) and, where prompts are given, one for each."""
    if len(images) == 0:
        raise UsageError("images: got none, need at least one")
    if isinstance(prompts, str):
        raise UsageError(f"prompts: got the string {prompts!r}, need a list with one prompt for each image")
    if prompts is not None and len(prompts) != len(images):
        raise UsageError(f"prompts: got {len(prompts)} for {len(images)} images, need one for each")


def _nan_rows(values: Tensor) -> Tensor:
    """Return [N, ...] with the rows that hold any NaN or infinity all NaN."""
    finite = values.isfinite().reshape(len(values), -1).all(1)  # [N]
    return values.masked_fill(~finite.view(-1, *[1] * (values.dim() - 1)), torch.nan)
