"""What a rollout hands out: the candidates at a rung or at the end, and what it has cost so far."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from probeselect.core.candidates import Candidate


@dataclass
class Stage:
    """All running candidates at one rung, or finished (`rung` is 1)."""

    rung: float  # completed_steps / total_steps
    completed_steps: int
    total_steps: int
    candidates: list[Candidate]
    maps: dict[str, Tensor]  # tap -> [N, C, H, W], in the order of `candidates`
    prompt_embeddings: Tensor | None  # [N, D] mean of the denoiser's text tokens, where it has them
    pictures: list[Any] | None  # previews at a rung that asked for them; finished pictures at the end
    kept: list[int] = field(default_factory=list)
    asked: float = 1.0  # the rung as it was asked for; few steps cannot meet every fraction
    flags: list[list[str]] = field(default_factory=list)  # [N] what is wrong with each, in words
    also: list[Candidate] = field(default_factory=list)  # of a finished stage: who is to be finished too

    def keep(self, indices: Sequence[int]) -> None:
        """Let the candidates at these positions of `candidates` run on; the others stop here."""
        self.kept = sorted(set(indices))

    def finish_too(self, candidates: Sequence[Candidate]) -> None:
        """At the end: finish these candidates as well, in a further stage."""
        self.also = list(candidates)


@dataclass
class Tally:
    """What a rollout has cost so far."""

    denoiser_rows: int = 0  # image evaluations of the denoiser; a guided step of one candidate is 1
    total_steps: int = 0
    encoder_rows: int = 0
    largest_wave: int = 0
    wave_halvings: int = 0
    prefix_bytes: int = 0  # the most that waiting candidates held at once
    steps_of: Counter[Candidate] = field(default_factory=Counter)  # steps computed for each candidate
    rows_of: dict[Candidate, Counter[str]] = field(default_factory=dict)  # the same, by module of the loop
    restarted: set[Candidate] = field(default_factory=set)  # run again from the start
    notes: list[str] = field(default_factory=list)  # what was not as planned, once each

    def count(self, candidates: Sequence[Candidate], modules: Sequence[str], denoises: bool) -> None:
        """A step has been computed for these candidates by these modules."""
        for candidate in candidates:
            self.steps_of[candidate] += denoises
            self.rows_of.setdefault(candidate, Counter()).update(modules)
        self.denoiser_rows += len(candidates) * denoises
