"""A stage: candidates at one rung, in a live run or in stored data; and a scorer, which is asked of stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """N candidates at a rung, or finished (`rung` is 1). Pure data: nothing in it can be asked to run.

    Maps of a live run are whole; those of stored data may have been projected to fewer channels, by `bases`.
    """

    rung: float  # completed_steps / total_steps
    completed_steps: int  # 0, like the total, where stored data do not say
    total_steps: int
    candidates: Sequence[Candidate]
    maps: Mapping[str, Tensor]  # tap -> [N, C, H, W], in the order of `candidates`
    prompt_embeddings: Tensor | None = None  # [N, D] mean of the denoiser's text tokens, where it has them
    pictures: Sequence[Any] | None = None  # previews at a rung that asked for them; finished pictures at the end
    asked: float = 1.0  # the rung as it was asked for; few steps cannot meet every fraction
    flags: Sequence[Sequence[str]] = ()  # [N] what is wrong with each, in words
    bases: Mapping[str, Tensor] = field(default_factory=dict)  # tap -> [P, C] that its maps were projected by
    preview_rewards: Mapping[str, Tensor] = field(default_factory=dict)  # evaluator -> [N], previews judged before

    @property
    def prompts(self) -> list[str]:
        """[N]"""
        return [candidate.prompt for candidate in self.candidates]


def whole_maps(stage: Stage, tap: str) -> Tensor:
    """The maps [N, C, H, W] of a tap with all their channels, in fp32.

    A basis of as many rows as columns is orthonormal, so its transpose undoes the projection. Raises UsageError where
    C channels were mixed into fewer.
    """
    maps, basis = stage.maps[tap].float(), stage.bases.get(tap)
    if basis is None:
        return maps
    kept, channels = basis.shape
    if kept < channels:
        raise UsageError(
            f"{tap}: its {channels} channels were mixed into {kept}, which cannot be undone; "
            f"collect with --map-channels {channels}"
        )
    return torch.einsum("pc,nphw->nchw", basis.to(maps), maps)


@runtime_checkable
class Scorer(Protocol):
    """Gives every candidate of a stage a score: the reward it expects of the finished picture.

    Scores of one scorer compare within a prompt; higher is better. `taps`: whose maps a stage must hold, by module path
    of the denoiser, or "x0", "attention". `previews`: whether it must hold decoded x0-predictions. It may also have

    - `check_prompts(prompts)`, `check_rungs(rungs)`: raise UsageError for one it cannot score, before anything is made;
    - `can_read(table, rung)`: whether stored data hold what it reads; else its maps and previews are looked for.
    """

    @property
    def name(self) -> str: ...
    @property
    def taps(self) -> Sequence[str]: ...
    @property
    def previews(self) -> bool: ...

    def __call__(self, stage: Stage) -> Tensor:
        """Scores [N], in the order of the stage's candidates; NaN ranks last."""
        ...
