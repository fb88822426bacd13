"""What one pipeline call hands back, and what the pipeline calls of one call of the sampler share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.core.candidates import Candidate
from probeselect.core.stage import Stage
from probeselect.rollout.callbacks import CallbackState
from probeselect.rollout.encoders import EncoderMemo
from probeselect.rollout.memory import MemoryWatch


@dataclass(frozen=True)
class BatchResult:
    """One call of the pipeline for n candidates. At a rung `pictures` are previews (None unless asked for)."""

    completed_steps: int
    total_steps: int
    pictures: list[Any] | None
    maps: dict[str, Tensor]  # tap -> [n, C, H, W]
    prompt_embeddings: Tensor | None  # [n, D]
    flags: list[list[str]]  # what is wrong with each candidate, in words
    latents: Tensor | None  # that the pictures were decoded from


@dataclass
class Shared:
    """What the pipeline calls of one call of the sampler share."""

    backbone: Backbone
    memo: EncoderMemo
    callbacks: CallbackState
    memory: MemoryWatch
    on_step: Callable[[Sequence[Candidate], Sequence[str]], None]  # candidates, modules that computed
    notes: Callable[[str], None]


def stage_of(candidates: Sequence[Candidate], results: Sequence[BatchResult]) -> Stage:
    """Batches of candidates that stand at one step, as one stage."""
    first = results[0]
    embeddings = [r.prompt_embeddings for r in results if r.prompt_embeddings is not None]
    return Stage(
        rung=1.0,
        completed_steps=first.completed_steps,
        total_steps=first.total_steps,
        candidates=list(candidates),
        maps={tap: torch.cat([r.maps[tap] for r in results]) for tap in first.maps},
        prompt_embeddings=torch.cat(embeddings) if len(embeddings) == len(results) else None,
        pictures=None if first.pictures is None else [p for r in results for p in r.pictures or ()],
        flags=[flags for r in results for flags in r.flags],
    )
