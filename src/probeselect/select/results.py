"""What selective generation gives back: candidates, who was kept, and what it cost."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RungScore:
    """What the scorer said of a candidate at one rung."""

    rung: float
    completed_steps: int
    score: float
    preview: Any = None  # decoded x0-prediction, when previews were asked for


@dataclass
class CandidateResult:
    """One candidate, stopped or finished."""

    prompt: str
    seed: int
    completed_steps: int = 0
    kept: bool = False
    image: Any = None  # in the pipeline's output type; None for one that was stopped
    scores: list[RungScore] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)  # what is wrong with the picture: "not finite", "safety checker"


@dataclass(frozen=True)
class Cost:
    """Work done, all prompts of the call together. A guided step of one candidate is one denoiser row."""

    denoiser_rows: int
    denoiser_rows_all: int  # what finishing every candidate would take
    seconds: float
    seconds_scoring: float
    largest_wave: int
    wave_halvings: int
    rows_by_module: dict[str, int] = field(default_factory=dict)  # the same count for each module of the loop
    restarted: int = 0  # candidates that were run again from the start, because replay did not fit them

    @property
    def ratio(self) -> float:
        return self.denoiser_rows / self.denoiser_rows_all


@dataclass(frozen=True)
class Result:
    """What became of one prompt. `images[i]` belongs to `kept[i]`, best first; `candidates` are in seed order."""

    prompt: str
    candidates: list[CandidateResult]
    kept: list[CandidateResult]
    cost: Cost  # of this prompt's candidates; seconds are its share of the call's
    decisions: list[dict[str, Any]] = field(default_factory=list)  # of an adaptive plan, wave after wave
    notes: list[str] = field(default_factory=list)  # what was not as planned, a sentence each

    @property
    def images(self) -> list[Any]:
        return [candidate.image for candidate in self.kept]
