"""Makes the content of shards: candidates through the one rollout, with a policy that stops nobody.

Knows the backbone and what to keep of it; does not know where shards lie or who else makes them. A group that fails
again and again is given up, with rows that say why, so that one prompt does not stop a hundred thousand.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor, nn

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import Tap
from probeselect.core.candidates import Candidate
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.core.fingerprint import fingerprint
from probeselect.core.rungs import check_met, validate_rungs
from probeselect.data.config import DatasetConfig, PinnedPrompts, Plain
from probeselect.data.prompts import Prompt
from probeselect.data.shards import (
    FAILED,
    IMAGE_FORMATS,
    NOT_FINITE,
    OK,
    Content,
    Made,
    encode_image,
    finite,
    half,
    image_name,
    seeds_of,
)
from probeselect.probe.maps import orthonormal, project, reduced
from probeselect.rollout.rollout import rollout
from probeselect.rollout.tally import Tally

TRIES = 3  # of a group, before it is given up


@dataclass(frozen=True)
class CollectSettings:
    """What to collect of every prompt; all of it is pinned in dataset.json."""

    run: str = ""  # seeds are hashes of (run, prompt id, index): another run, other pictures
    n: int = 5
    rungs: tuple[float, ...] = (0.1, 0.2, 0.4)
    map_channels: int = 48  # a tap with more channels goes through the fixed projection
    map_side: int = 16  # a map whose shorter side is longer is reduced to it
    previews: bool = False  # keep the decoded x0-predictions too
    image_format: str = "png"
    groups_per_shard: int = 16
    batch_size: int | None = None  # most candidates in one batch; None: as many as fit

    def __post_init__(self) -> None:
        validate_rungs(self.rungs)
        for name in ("n", "map_channels", "map_side", "groups_per_shard"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size = {self.batch_size}: must be at least 1")
        if self.image_format not in IMAGE_FORMATS:
            raise UsageError(f"image_format = {self.image_format!r}: is not one of {', '.join(IMAGE_FORMATS)}")


def configuration(
    backbone: Backbone,
    taps: Sequence[Tap],
    settings: CollectSettings,
    arguments: Mapping[str, Any],
    prompts: PinnedPrompts,
    revision: str = "",
) -> DatasetConfig:
    """All that defines the data; `arguments` are those of the pipeline."""
    scheduler = backbone.pipe.scheduler
    fields = {key: value for key, value in dict(scheduler.config).items() if not key.startswith("_")}
    parameter = next(backbone.denoiser.parameters())
    return DatasetConfig(
        **asdict(settings),
        **structs.asdict(backbone.describe()),
        prompts=prompts,
        pipeline=type(backbone.pipe).__name__,
        taps=tuple(tap.name for tap in taps),
        model=backbone.name,
        revision=revision,
        weights=fingerprint({k: v for k, v in backbone.pipe.components.items() if isinstance(v, nn.Module)}),
        scheduler={"class": type(scheduler).__name__, **{key: _plain(value) for key, value in fields.items()}},
        arguments={key: _plain(value) for key, value in arguments.items()},
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=parameter.device.type,
    )


def _plain(value: Any) -> Plain:
    """A value as dataset.json may hold it; JSON knows no infinity, and some schedulers are configured with one."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    return value if isinstance(value, str | int | None) else repr(value)


class ShardMaker:
    """Makes the content of a shard from its prompts. One per process: it remembers what fits the device."""

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[Tap],
        settings: CollectSettings,
        arguments: dict[str, Any],
        revision: str = "",
        progress: Callable[[int, int], None] = lambda done, planned: None,
    ) -> None:
        if isinstance(steps := arguments.get("num_inference_steps"), int):
            check_met(settings.rungs, steps)
        self.backbone, self.taps, self.settings, self.arguments = backbone, tuple(taps), settings, arguments
        self.revision, self.progress = revision, progress
        self.batch_size = settings.batch_size

    def __call__(self, prompts: Sequence[Prompt]) -> Content:
        """The content of a shard of these prompts.

        Raises UsageError for arguments that no prompt could make right, and ProbeSelectError when no group of the
        shard can be made.
        """
        try:
            return self._make(prompts)
        except UsageError:
            raise
        except Exception as error:
            if len(prompts) == 1:
                return self._one(prompts[0])[0]
            first = error
        made = [self._one(prompt) for prompt in prompts]
        if not any(whole for _, whole in made):
            raise ProbeSelectError(f"no group of a shard can be made: {_one_line(first)}") from first
        return joined([content for content, _ in made])

    def _one(self, prompt: Prompt) -> tuple[Content, bool]:
        """One group by itself, tried several times; rows that say why when it is given up."""
        error: Exception | None = None
        for _ in range(TRIES):
            try:
                return self._make([prompt]), True
            except UsageError:
                raise
            except Exception as found:
                error = found
        return self._given_up(prompt, _one_line(error)), False

    def _given_up(self, prompt: Prompt, error: str) -> Content:
        groups = (1, self.settings.n)
        seeds = seeds_of(self.settings.run, prompt.id, self.settings.n)
        tensors = {"seeds": np.array([seeds], dtype=np.int64), "valid": np.zeros(groups, dtype=bool)}
        rows = [self.row(prompt, i, seed, FAILED, error) for i, seed in enumerate(seeds)]
        return Content(tensors, rows, made=Made(given_up=1))

    def _make(self, prompts: Sequence[Prompt]) -> Content:
        settings, groups = self.settings, (len(prompts), self.settings.n)
        candidates = [
            Candidate(group, prompt.text, seed)
            for group, prompt in enumerate(prompts)
            for seed in seeds_of(settings.run, prompt.id, settings.n)
        ]
        tensors: dict[str, NDArray[Any]] = {"seeds": np.array([c.seed for c in candidates]).reshape(groups)}
        images: dict[str, bytes] = {}
        size, tally = (0, 0), Tally()
        stages = rollout(
            self.backbone, candidates, settings.rungs, taps=self.taps, previews=settings.previews,
            batch_size=self.batch_size, tally=tally, progress=self.progress, **self.arguments,
        )  # fmt: skip
        for stage in stages:
            finished = stage.rung == 1
            if finished and stage.pictures:
                size = stage.pictures[0].size
            for place, picture in enumerate(stage.pictures or ()):
                group, index = divmod(place, settings.n)
                rung = None if finished else stage.asked
                name = image_name(prompts[group].id, index, settings.image_format, rung)
                images[name] = encode_image(picture, settings.image_format)
            if finished:
                continue
            for i, (tap, values) in enumerate(stage.maps.items()):
                kept, tensors[f"projection/{tap}"] = self.stored(i, values)
                tensors[f"map/{tap}/{stage.asked:g}"] = kept.reshape(*groups, *kept.shape[1:])
            if stage.prompt_embeddings is not None:
                first = stage.prompt_embeddings.unflatten(0, groups)[:, 0].float()
                tensors["prompt"] = half(first.cpu().numpy())
        if tally.wave_halvings:
            self.batch_size = tally.largest_wave
        valid = tensors["valid"] = finite(tensors, groups)
        rows = [
            self.row(prompts[c.group], i % settings.n, c.seed, OK if good else NOT_FINITE, size=size)
            for i, (c, good) in enumerate(zip(candidates, valid.flat, strict=True))
        ]
        made = Made(largest_wave=tally.largest_wave, wave_halvings=tally.wave_halvings)
        return Content(tensors, rows, images, made)

    def stored(self, place: int, values: Tensor) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """What is kept of the maps [N, C, H, W] of the tap at `place` of `taps`: [N, P, H', W'], and the basis."""
        channels = values.shape[1]
        basis = _basis(min(self.settings.map_channels, channels), channels, seed=place)
        kept = reduced(project(basis.to(values.device), values), self.settings.map_side)
        return half(kept.cpu().numpy()), basis.numpy()

    def row(
        self, prompt: Prompt, index: int, seed: int, status: str, error: str = "", size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """A row in the form of `ROWS`; `size` is (width, height) of the picture, None where there is none."""
        usual = inspect.signature(type(self.backbone.pipe).__call__).parameters.get("guidance_scale")
        guidance = self.arguments.get("guidance_scale", usual.default if usual else None)
        width, height = size or (None, None)
        return {
            "prompt_id": prompt.id, "prompt": prompt.text, "index": index, "seed": seed,
            "model": self.backbone.name, "revision": self.revision,
            "scheduler": type(self.backbone.pipe.scheduler).__name__,
            "steps": self.arguments.get("num_inference_steps"),
            "guidance": float(guidance) if isinstance(guidance, int | float) else None,
            "height": height, "width": width,
            "image": image_name(prompt.id, index, self.settings.image_format) if size else "",
            "status": status, "error": error,
        }  # fmt: skip


@cache
def _basis(rows: int, columns: int, seed: int) -> Tensor:
    """`orthonormal`, made once: for thousands of channels it takes a second."""
    return orthonormal(rows, columns, seed)


def joined(parts: Sequence[Content]) -> Content:
    """Groups made apart as one shard. A group that was given up gets zeros where the others have activations."""
    names = {name: values for part in parts for name, values in part.tensors.items()}
    tensors = {
        name: like
        if name.startswith("projection/")
        else np.concatenate([part.tensors.get(name, np.zeros_like(like)) for part in parts])
        for name, like in names.items()
    }
    made = Made(
        largest_wave=max(part.made.largest_wave or 0 for part in parts),
        wave_halvings=sum(part.made.wave_halvings or 0 for part in parts),
        given_up=sum(part.made.given_up or 0 for part in parts),
    )
    rows = [row for part in parts for row in part.rows]
    return Content(tensors, rows, {name: data for part in parts for name, data in part.images.items()}, made)


def _one_line(error: Exception | None) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:1000]
