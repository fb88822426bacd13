"""What happens in a run, as typed events. Every reader (progress bar, page, service, node) reads these and no more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.select.records import CandidateResult


@dataclass
class Verdict:
    """Who of one prompt goes on from a rung: what the policy proposes, until somebody overrules it."""

    members: Sequence[CandidateResult]  # that run and were scored
    chosen: list[int]  # places in `members`, best first
    open: bool = True  # until the next event is asked for

    def keep(self, going_on: Sequence[Any]) -> None:
        """Overrule. Raises UsageError for one who does not run, and once the run has gone on."""
        if not self.open:
            raise UsageError("keep: this rung is over; overrule before the next event is asked for")
        seeds = [each if isinstance(each, int) else each.seed for each in going_on]
        running = [member.seed for member in self.members]
        if unknown := [seed for seed in seeds if seed not in running]:
            raise UsageError(f"keep: seed {unknown[0]} does not run; running are {', '.join(map(str, running))}")
        self.chosen = [running.index(seed) for seed in dict.fromkeys(seeds)]


@dataclass(frozen=True)
class Event:
    """Something has become of a candidate. `kind` says what; `score` and `preview` are of the rung, where there is one.

    candidate: its record, which goes on growing: seed, prompt, group, scores, rewards, image.
    """

    candidate: CandidateResult
    rung: float = 1.0  # completed steps / all steps
    score: float | None = None
    preview: Any = None  # decoded x0-prediction, where previews are made
    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Scored(Event):
    """A candidate was scored at a rung. All of a prompt's are, one after another, before anybody is stopped."""

    verdict: Verdict = field(repr=False, default_factory=lambda: Verdict([], []))
    kind = "scored"

    @property
    def last(self) -> bool:
        """Whether all candidates of the prompt have been scored at this rung now: the time to overrule."""
        return self.candidate is self.verdict.members[-1]

    @property
    def proposal(self) -> list[int]:
        """Seeds of those who are to go on as things stand, best first."""
        return [self.verdict.members[i].seed for i in self.verdict.chosen]

    @property
    def others(self) -> Sequence[CandidateResult]:
        """All candidates of the prompt that run, this one among them."""
        return self.verdict.members

    def keep(self, going_on: Sequence[int | CandidateResult | Candidate]) -> None:
        """Let these candidates of this prompt go on, by seed or as they are, and stop the others.

        Raises UsageError for a candidate that does not run.
        """
        self.verdict.keep(going_on)


@dataclass(frozen=True)
class Kept(Event):
    """A candidate goes on from a rung."""

    kind = "kept"


@dataclass(frozen=True)
class Stopped(Event):
    """A candidate was stopped at a rung."""

    kind = "stopped"


@dataclass(frozen=True)
class Finished(Event):
    """A picture is finished: `event.candidate.image`; `flags` says what is wrong with it, mostly nothing."""

    kind = "finished"

    @property
    def flags(self) -> list[str]:
        return self.candidate.flags


@dataclass(frozen=True)
class Judged(Event):
    """The evaluators have judged a finished picture."""

    kind = "judged"

    @property
    def rewards(self) -> Mapping[str, float]:
        return self.candidate.rewards


Progress = Callable[[int, int], None]  # steps done, steps planned as far as is known
