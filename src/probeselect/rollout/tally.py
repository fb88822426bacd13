"""What a rollout has cost so far."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from probeselect.core.candidates import Candidate


@dataclass
class Tally:
    """Counted in denoiser rows: one is one step of one candidate, however many rows its guidance takes."""

    denoiser_rows: int = 0
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
