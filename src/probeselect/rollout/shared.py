"""What one pipeline call hands back, and what the pipeline calls of one call of the sampler share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.core.candidates import Candidate
from probeselect.rollout.callbacks import CallbackState
from probeselect.rollout.encoders import EncoderMemo
from probeselect.rollout.memory import MemoryWatch


@dataclass(frozen=True)
class WaveResult:
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
