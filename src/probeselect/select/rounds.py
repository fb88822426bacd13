"""The one loop: open candidates, score them at the rungs, stop the weak ones, finish the rest; again, if need be.

A generator of typed events that can be answered: `Scored.keep` overrules the policy, `Batches.stop` ends it early.
Knows rounds, who waits and who is kept; does not know how scores come about, nor how a batch is run.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from probeselect.backbones.taps import X0, Tap
from probeselect.core.candidates import Candidate
from probeselect.core.errors import Stopped as StopRequested
from probeselect.core.stage import Scorer, Stage
from probeselect.evaluators.base import Evaluator
from probeselect.policies.diversity import spread_out
from probeselect.policies.schedule import Schedule
from probeselect.policies.stopping import RoundsSoFar
from probeselect.rollout.batches import Batches
from probeselect.select.events import Event, Finished, Judged, Kept, Scored, Stopped, Verdict
from probeselect.select.finishing import evaluate, keep, results_of, substitutes
from probeselect.select.records import CandidateResult, Decision, RungScore
from probeselect.select.results import Result


class Recording(Protocol):
    """Keeps what a run produces as training data, see `collect.recorder`."""

    @property
    def taps(self) -> Sequence[Tap]: ...

    def finishes(self, candidates: Sequence[Candidate]) -> Collection[Candidate]:
        """Those who are finished whatever becomes of them."""
        ...

    def note(self, stage: Stage) -> None: ...

    def write(self, candidates: Sequence[Candidate], pictures: Mapping[Candidate, Any]) -> None: ...


@dataclass(frozen=True)
class Options:
    """What a run is asked for, beside its schedule."""

    evaluators: Sequence[Evaluator] = ()
    diversity: float = 0.0  # 0 to 1, how much those who are kept should differ; the last rung asks
    previews: bool = False  # show every candidate at every rung
    record: Recording | None = None


@dataclass
class _Prompt:
    """The candidates of one prompt on their way."""

    candidates: list[Candidate]  # in the order of opening
    opened: list[Candidate] = field(default_factory=list)  # in this round
    waiting: list[Candidate] = field(default_factory=list)  # who came through the last rung, best first
    scores: dict[Candidate, float] = field(default_factory=dict)  # of those, at the last rung
    champions: list[float] = field(default_factory=list)  # best score of each round
    decisions: list[Decision] = field(default_factory=list)

    def open(self, n: int, number: int) -> list[Candidate]:
        self.opened = self.candidates[(number - 1) * n : number * n]
        return self.opened

    def wait(self, through: Sequence[tuple[Candidate, float]], finish: int | None) -> None:
        self.champions.append(through[0][1] if through else math.nan)
        self.scores |= dict(through)
        everyone = [*self.waiting, *(candidate for candidate, _ in through)]
        if self.waiting:
            everyone.sort(key=lambda c: -math.inf if math.isnan(self.scores[c]) else self.scores[c], reverse=True)
        self.waiting = everyone[:finish]


class Rounds:
    """One call of the sampler. Iterate over `events()`, then ask for `results()`; what is done by then counts.

    candidates: of every prompt the most that may be opened, in the order of opening.
    """

    def __init__(
        self, batches: Batches, candidates: Sequence[Candidate], schedule: Schedule, scorer: Scorer, options: Options
    ) -> None:
        self.began = time.perf_counter()
        self.batches, self.schedule, self.scorer, self.options = batches, schedule, scorer, options
        self.candidates = list(candidates)
        self.records = {c: CandidateResult(c.prompt, c.seed, group=c.group) for c in candidates}
        self.prompts: dict[int, _Prompt] = {}
        for candidate in candidates:
            self.prompts.setdefault(candidate.group, _Prompt([])).candidates.append(candidate)
        recorded = options.record.taps if options.record else ()
        scored = map(batches.backbone.tap, scorer.taps)
        self.taps = tuple(dict.fromkeys([*scored, *recorded, *((X0,) if options.diversity else ())]))
        self.pictures: dict[Candidate, Any] = {}
        self.notes: list[str] = []
        self.seconds_scoring = 0.0
        self.cut_short = False

    def events(self) -> Iterator[Event]:
        """All that happens, in order. Ends early, without an error, once the run is asked to stop."""
        try:
            yield from self._rounds()
        except StopRequested:
            self.cut_short = True
            self.notes.append("The run was stopped: what was finished by then is kept.")

    def results(self, about: Mapping[str, str]) -> list[Result]:
        """A result a prompt, of what has been done so far."""
        chosen = [c for prompt in self.prompts.values() for c in prompt.waiting]
        if self.cut_short:
            chosen = [c for c in chosen if c in self.pictures]
        kept = keep(chosen, self.schedule.keeps, self.records, self.options.evaluators)
        tally = self.batches.tally
        tally.notes += self.notes
        decisions = {group: prompt.decisions for group, prompt in self.prompts.items()}
        seconds = time.perf_counter() - self.began
        return results_of(self.records, kept, decisions, tally, seconds, self.seconds_scoring, about)

    def _rounds(self) -> Iterator[Event]:
        rule, going_on = self.schedule.stop, list(self.prompts.values())
        for number in range(1, rule.rounds + 1):
            running = [c for prompt in going_on for c in prompt.open(self.schedule.n, number)]
            anyway = set(self.options.record.finishes(running)) if self.options.record else set[Candidate]()
            yield from self._to_last_rung(running, anyway)
            if rule.needs_rewards or number == rule.rounds == 1:
                yield from self._finish([c for prompt in going_on for c in prompt.waiting], anyway)
            if self.options.record:
                self.options.record.write(running, self.pictures)
            going_on = [prompt for prompt in going_on if not self._enough(prompt, number)]
            if not going_on:
                break
        yield from self._finish([c for prompt in self.prompts.values() for c in prompt.waiting])

    def _to_last_rung(self, running: Sequence[Candidate], anyway: Collection[Candidate]) -> Iterator[Event]:
        """Those of one round, from their start to where they wait; `anyway`: who runs on for the record alone."""
        going = list(running)
        places: dict[Candidate, float] = {c: math.nan for c in running}  # who runs, best first in each prompt
        for index, rung in enumerate(self.schedule.rungs):
            stage = self.batches.to_rung(going, rung, self.taps, self.options.previews or self.scorer.previews)
            if self.options.record:
                self.options.record.note(stage)
            scores = self._scores(stage)
            verdicts = self._verdicts(stage, scores, places, index)
            yield from self._scored(stage, scores, verdicts)
            yield from self._told(stage, scores, verdicts)
            through = [c for members, verdict in verdicts for c in (members[i] for i in verdict.chosen)]
            by_candidate = dict(zip(stage.candidates, scores.tolist(), strict=True))
            places = {c: by_candidate[c] for c in through}
            going = [c for c in stage.candidates if c in places or c in anyway]
            waiting = [c for prompt in self.prompts.values() for c in prompt.waiting]
            self.batches.forget_all_but([*going, *waiting])
        for group in dict.fromkeys(c.group for c in running):
            mine = [(c, score) for c, score in places.items() if c.group == group]
            self.prompts[group].wait(mine, self.schedule.finish)

    def _scores(self, stage: Stage) -> Tensor:
        """[N]; of a candidate that has broken down, or whose preview was blacked out, not a number."""
        began = time.perf_counter()
        scores = torch.as_tensor(self.scorer(stage)).detach().float().cpu()
        self.seconds_scoring += time.perf_counter() - began
        flagged = [i for i, flags in enumerate(stage.flags) if flags]
        return scores.index_fill(0, torch.tensor(flagged), math.nan) if flagged else scores

    def _verdicts(
        self, stage: Stage, scores: Tensor, running: Collection[Candidate], index: int
    ) -> list[tuple[list[Candidate], Verdict]]:
        """Prompt by prompt, what the policy says of those who run."""
        members: dict[int, list[int]] = {}
        for place, candidate in enumerate(stage.candidates):
            if candidate in running:
                members.setdefault(candidate.group, []).append(place)
        verdicts = []
        for places in members.values():
            mine = torch.tensor(places)
            chosen = self.schedule.policy(scores[mine], index)
            if self.options.diversity and index == len(self.schedule.rungs) - 1:
                maps = [tap[mine.to(tap.device)] for tap in stage.maps.values()]
                chosen = spread_out(scores[mine], maps, len(chosen), self.options.diversity)
            if not scores[mine].isfinite().any():
                self.notes.append(
                    f"Scorer {self.scorer.name} gave no score to any candidate of "
                    f"{stage.candidates[places[0]].prompt!r} at {stage.rung:.0%}: the first seeds go on."
                )
            of_prompt = [stage.candidates[place] for place in places]
            verdicts.append((of_prompt, Verdict([self.records[c] for c in of_prompt], list(chosen))))
        return verdicts

    def _scored(
        self, stage: Stage, scores: Tensor, verdicts: Sequence[tuple[list[Candidate], Verdict]]
    ) -> Iterator[Event]:
        """Note what the scorer says, then tell of it."""
        places = {candidate: place for place, candidate in enumerate(stage.candidates)}
        for candidate in stage.candidates:
            self.records[candidate].completed_steps = stage.completed_steps
        for members, _ in verdicts:
            for candidate in members:
                place, record = places[candidate], self.records[candidate]
                picture = stage.pictures[place] if self.options.previews and stage.pictures else None
                record.scores.append(RungScore(stage.rung, stage.completed_steps, scores[place].item(), picture))
                record.flags = list(stage.flags[place]) if stage.flags else []
        for members, verdict in verdicts:
            for candidate in members:
                made = self.records[candidate].scores[-1]
                yield Scored(self.records[candidate], stage.rung, made.score, made.preview, verdict)

    def _told(
        self, stage: Stage, scores: Tensor, verdicts: Sequence[tuple[list[Candidate], Verdict]]
    ) -> Iterator[Event]:
        for members, verdict in verdicts:
            verdict.open = False
            for place, candidate in enumerate(members):
                record = self.records[candidate]
                what = Kept if place in verdict.chosen else Stopped
                yield what(record, stage.rung, record.scores[-1].score, record.scores[-1].preview)

    def _finish(self, chosen: Sequence[Candidate], anyway: Collection[Candidate] = ()) -> Iterator[Event]:
        """Finish and judge those chosen, and others for those whose pictures are flagged; `anyway` are not judged."""
        wanted = {*chosen, *anyway} - self.pictures.keys()
        todo = [c for c in self.candidates if c in wanted]
        judged = [c for c in chosen if c in wanted]
        while todo:
            for stage in self.batches.finished(todo):
                for candidate, picture, flags in zip(stage.candidates, stage.pictures or (), stage.flags, strict=True):
                    record = self.records[candidate]
                    record.image, record.completed_steps, record.flags = picture, stage.completed_steps, list(flags)
                    self.pictures[candidate] = picture
                    yield Finished(record, score=record.scores[-1].score if record.scores else None)
            todo = substitutes(chosen, self.records)
            judged += todo
        self.notes += evaluate(judged, self.records, self.options.evaluators)
        for candidate in judged if self.options.evaluators else ():
            if self.records[candidate].rewards:
                yield Judged(self.records[candidate])

    def _enough(self, prompt: _Prompt, number: int) -> bool:
        """Ask the stopping rule, and note what it says."""
        rule, k = self.schedule.stop, self.schedule.k
        if rule.rounds == 1 and not rule.measured:
            return True
        champions = [score for score in prompt.champions if math.isfinite(score)] or [math.nan]
        waiting = [prompt.scores[c] for c in prompt.waiting if math.isfinite(prompt.scores[c])]
        kth = waiting[k - 1] if len(waiting) >= k else -math.inf
        reward = self._kth_reward(prompt, k) if rule.needs_rewards else None
        so_far = RoundsSoFar(np.array(champions), np.full(len(champions), kth), reward, k)
        measured = rule.measure(so_far)
        value, best = float(measured[-1]), waiting[0] if waiting else None
        decision = Decision(
            number, tuple(c.seed for c in prompt.opened), None if best is None else round(best, 6), rule.measured,
            round(value, 6) if math.isfinite(value) else None, rule.threshold_name, round(rule.threshold, 6),
            bool(rule.enough(measured)[-1]), number == rule.rounds,
        )  # fmt: skip
        prompt.decisions.append(decision)
        return decision.stops

    def _kth_reward(self, prompt: _Prompt, k: int) -> np.ndarray:
        name = self.options.evaluators[0].name
        found = [self.records[c].rewards.get(name, math.nan) for c in prompt.candidates if c in self.pictures]
        good = sorted((reward for reward in found if not math.isnan(reward)), reverse=True)
        return np.array([good[k - 1] if len(good) >= k else math.nan])
