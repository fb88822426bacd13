"""What is known of candidates and prompts in a run: pure data, that results, files and pictures are made of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probeselect.core.candidates import Candidate
from probeselect.rollout.tally import Tally


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
    group: int = 0  # which prompt of the call, counted from 0

    def __repr__(self) -> str:
        score = f", score {self.scores[-1].score:.3g}" if self.scores else ""
        fate = "kept" if self.kept else f"{self.completed_steps} steps"
        return f"<candidate seed {self.seed}{score}, {fate}>"


@dataclass(frozen=True)
class Cost:
    """Work done for a prompt. A guided step of one candidate is one denoiser row.

    A field that is added here is in result.json too.
    """

    denoiser_rows: int
    denoiser_rows_all: int  # what finishing every candidate would take
    seconds: float
    seconds_scoring: float
    largest_wave: int
    wave_halvings: int
    rows_by_module: dict[str, int] = field(default_factory=dict)  # the same count for each module of the loop
    restarted: int = 0  # candidates that were run again from the start, because replay did not fit them

    @classmethod
    def of(
        cls, tally: Tally, candidates: Sequence[Candidate], begun: int, seconds: float, seconds_scoring: float
    ) -> "Cost":
        """Of one prompt's candidates, of which so many were begun; seconds are its share by steps of those of all."""
        rows = sum(tally.steps_of[c] for c in candidates)
        share = rows / max(tally.denoiser_rows, 1)
        return cls(
            denoiser_rows=rows,
            denoiser_rows_all=begun * tally.total_steps,
            seconds=seconds * share,
            seconds_scoring=seconds_scoring * share,
            largest_wave=tally.largest_wave,
            wave_halvings=tally.wave_halvings,
            rows_by_module=dict(sum((tally.rows_of.get(c, Counter()) for c in candidates), Counter[str]())),
            restarted=sum(c in tally.restarted for c in candidates),
        )

    @property
    def ratio(self) -> float:
        return self.denoiser_rows / max(self.denoiser_rows_all, 1)

    def fields(self) -> dict[str, Any]:
        """As result.json has it."""
        values = {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}
        return {**values, "ratio": round(self.ratio, 6)}


@dataclass(frozen=True)
class Decision:
    """Whether one prompt got another round, and why."""

    round: int  # counted from 1
    seeds: tuple[int, ...]  # that it opened
    best: float | None  # score so far; None while none is a number
    measured: str  # what decided: "expected_gain", "chance" or "reward"
    value: float | None  # of it; None where it could not be said
    threshold_name: str
    threshold: float
    enough: bool
    last: bool  # no more rounds were allowed

    @property
    def stops(self) -> bool:
        return self.enough or self.last

    def fields(self) -> dict[str, Any]:
        """As result.json has it."""
        decision = ("finish, no more rounds" if self.last else "finish") if self.stops else "open another round"
        return {
            "wave": self.round,
            "seeds": list(self.seeds),
            "best": self.best,
            self.measured: self.value,
            self.threshold_name: self.threshold,
            "decision": decision,
        }

    def in_words(self) -> str:
        """Such as "expected gain 0.021 is below the threshold 0.023: stopping"."""
        if self.value is None:
            found = f"no {self.measured.replace('_', ' ')} can be given yet"
        else:
            falls = self.measured == "expected_gain"
            side = ("below" if self.enough else "above") if falls else ("at or above" if self.enough else "below")
            name, figure = self.measured.replace("_", " "), f"{self.value:.3f}"
            found = f"{name} {figure} is {side} the threshold {self.threshold:.3f}"
        if self.enough:
            return f"{found}: stopping"
        return f"{found}, and this was the last round" if self.last else f"{found}: another round"


@dataclass(frozen=True, repr=False)
class PromptResult:
    """What became of one prompt. `images[i]` belongs to `kept[i]`, best first; `candidates` are in seed order."""

    prompt: str
    candidates: list[CandidateResult]
    kept: list[CandidateResult]
    cost: Cost  # of this prompt's candidates; seconds are its share of the call's
    decisions: list[Decision] = field(default_factory=list)  # round after round, where there may be several
    notes: list[str] = field(default_factory=list)  # what was not as planned, a sentence each
    about: Mapping[str, str] = field(default_factory=dict)  # model, scorer and policy, by name

    @property
    def images(self) -> list[Any]:
        return [candidate.image for candidate in self.kept]
