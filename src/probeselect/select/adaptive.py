"""Runs an adaptive plan: opens the candidates of all prompts in waves, for as long as another one pays.

Knows rounds, who waits and why it was decided so; does not know how scores come about. Prompts that still open a wave
open it together, and those who finish do so together at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import Tap
from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.core.judged import short_name
from probeselect.policies.chances import Target
from probeselect.policies.plans import AdaptivePlan
from probeselect.policies.policy import Policy
from probeselect.rollout.stage import Stage, Tally
from probeselect.rollout.waves import Waves


def check_adaptive(policy: Policy, diversity: float, record: bool) -> None:
    """Raises UsageError for what does not go together with an adaptive plan."""
    if isinstance(policy, AdaptivePlan) and (diversity or record):
        asked = "diversity" if diversity else "record"
        raise UsageError(f"{asked}: is for plans that start all candidates together, not for an adaptive one")


def other_scorer(policy: Policy, scorer: str) -> str | None:
    """A note where an adaptive plan was made with the scores of another scorer, as far as names can tell."""
    if not isinstance(policy, AdaptivePlan) or not policy.scorer:
        return None
    if (name := short_name(scorer)) == policy.scorer:
        return None
    return f"made with the scores of {policy.scorer}; its numbers may not be those of {name}"


class AdaptiveRun:
    """One call of SelectiveSampler by an adaptive plan.

    candidates: of every prompt the most that may be opened, in the order of opening.
    target: what is good enough, with a confidence. With one a prompt stops when that is likely enough, else when
        another wave does not pay.
    `decisions` holds, by prompt, an entry a wave: the seeds that were opened, the best score so far, what another wave
    was expected to gain (None where that cannot be said) and the least that it should, or with a target the chance of
    it and the confidence that is asked for, and what was decided.
    """

    def __init__(self, plan: AdaptivePlan, candidates: Sequence[Candidate], target: Target | None = None) -> None:
        self.plan, self.target = plan, target
        self.members: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            self.members.setdefault(candidate.group, []).append(candidate)
        self.opening = list(self.members)  # groups
        self.waiting: dict[int, list[tuple[float, Candidate]]] = {group: [] for group in self.members}  # best first
        self.champions: dict[int, list[float]] = {group: [] for group in self.members}  # score of each wave's
        self.decisions: dict[int, list[dict[str, Any]]] = {group: [] for group in self.members}
        self.wave = self.rung_index = 0

    def stages(
        self,
        backbone: Backbone,
        rungs: Sequence[float],
        *,
        taps: Sequence[Tap],
        previews: bool,
        batch_size: int | None,
        tally: Tally,
        progress: Callable[[int, int], None],
        say: Callable[[str], None],
        **arguments: Any,
    ) -> Iterator[Stage]:
        """As `rollout` does, yield the stage at each rung of each wave, then the finished one.

        Before it is asked for the next one, `decide` must be told the scores of the last.
        """
        everyone = [candidate for group in self.members.values() for candidate in group]
        waves = Waves(backbone, everyone, arguments, batch_size, tally, progress, say)
        while self.opening:
            running = [candidate for group in self.opening for candidate in self._opened(group)]
            for index, rung in enumerate(rungs):
                self.rung_index = index
                stage = waves.to_rung(running, rung, taps, previews)
                yield stage
                running = [running[i] for i in stage.kept]
                waves.forget_all_but([*running, *self.order()])
            self.wave += 1
        running = self.order()
        while running:
            stage = waves.to_end(running)
            yield stage
            running = stage.also

    def scored(self, stage: Stage) -> set[Candidate]:
        """Those whose scores count: all of the wave."""
        return set(stage.candidates)

    def decide(self, stage: Stage, scores: Tensor) -> None:
        """Ask the plan prompt by prompt: who goes on and, after the last rung, whether another wave is opened.

        scores: [N], of the stage's candidates.
        """
        going_on: list[int] = []
        last = self.rung_index == len(self.plan.steps) - 1
        for group in list(self.opening):
            mine = [i for i, candidate in enumerate(stage.candidates) if candidate.group == group]
            chosen = [mine[i] for i in self.plan(scores[torch.tensor(mine)], self.rung_index)]
            going_on += chosen
            if last:
                self._wait(group, [(scores[i].item(), stage.candidates[i]) for i in chosen])
                self._decide_on(group)
        stage.keep(going_on)

    def order(self) -> list[Candidate]:
        """Who would be finished now, prompt by prompt, best first."""
        return [candidate for waiting in self.waiting.values() for _, candidate in waiting]

    def _opened(self, group: int) -> list[Candidate]:
        start = self.wave * self.plan.wave
        return self.members[group][start : start + self.plan.wave]

    def _wait(self, group: int, more: list[tuple[float, Candidate]]) -> None:
        self.champions[group].append(more[0][0])
        everyone = [*self.waiting[group], *more]
        everyone.sort(key=lambda each: -math.inf if math.isnan(each[0]) else each[0], reverse=True)
        self.waiting[group] = everyone[: self.plan.finish]

    def _decide_on(self, group: int) -> None:
        scores = [score for score, _ in self.waiting[group]]
        told, enough = self._enough(group, scores)
        last = self.wave == self.plan.waves - 1
        if finish := last or enough:
            self.opening.remove(group)
        self.decisions[group].append(
            {
                "wave": self.wave + 1,
                "seeds": [candidate.seed for candidate in self._opened(group)],
                "best": round(scores[0], 6) if math.isfinite(scores[0]) else None,
                **told,
                "decision": ("finish, no more waves" if last else "finish") if finish else "open another wave",
            }
        )

    def _enough(self, group: int, scores: list[float]) -> tuple[dict[str, float | None], bool]:
        """What speaks for another wave or against it, and whether to stop."""
        if self.target is None or self.target.confidence is None:
            gain, least = self.plan.gain(self.champions[group], scores), self.plan.least_gain
            expected = round(gain, 6) if math.isfinite(gain) else None
            return {"expected_gain": expected, "least_gain": round(least, 6)}, gain <= least
        chance, confidence = self.plan.chance(scores, self.target.reward), self.target.confidence
        return {"chance": round(chance, 6), "confidence": confidence}, chance >= confidence
