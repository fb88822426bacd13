"""A stage: candidates at one rung, as a scorer sees them, in a live run or in stored data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from probeselect.core.candidates import Candidate


@dataclass(frozen=True)
class Stage:
    """N candidates at a rung, or finished (`rung` is 1). Pure data: nothing in it can be asked to run.

    Maps of a live run are whole; those of stored data may have been projected to fewer channels, by `bases`.
    """

    rung: float  # completed_steps / total_steps
    completed_steps: int
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
