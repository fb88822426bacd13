"""Runs a schedule whose candidates all start together: at every rung the policy says who of a prompt goes on."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.core.candidates import Candidate
from probeselect.policies.diversity import spread_out
from probeselect.policies.policy import Policy
from probeselect.rollout.rollout import rollout
from probeselect.rollout.stage import Stage


class FixedRun:
    """One call of SelectiveSampler by a policy that starts all candidates together.

    drawn: candidates that run to the end whatever becomes of them.
    diversity: how much those who are kept should differ; asked for at the last of `rung_count` rungs.
    """

    def __init__(
        self,
        policy: Policy,
        candidates: Sequence[Candidate],
        rung_count: int,
        drawn: Collection[Candidate] = (),
        diversity: float = 0.0,
    ) -> None:
        self.policy, self.candidates, self.drawn, self.diversity = policy, candidates, drawn, diversity
        self.rung_count, self.rung_index = rung_count, 0
        self.running = list(candidates)
        self.decisions: dict[int, list[dict[str, Any]]] = {}

    def stages(self, backbone: Backbone, rungs: Sequence[float], **options: Any) -> Iterator[Stage]:
        """As `rollout` does. Before it is asked for the next one, `decide` must be told the scores of the last."""
        return rollout(backbone, self.candidates, rungs, **options)

    def scored(self, stage: Stage) -> set[Candidate]:
        """Those whose scores count: not those who run on for being drawn alone."""
        return set(self.running)

    def decide(self, stage: Stage, scores: Tensor) -> None:
        """Ask the policy prompt by prompt about those who run. scores: [N], of the stage's candidates."""
        running, positions = set(self.running), dict[int, list[int]]()
        for i, candidate in enumerate(stage.candidates):
            if candidate in running:
                positions.setdefault(candidate.group, []).append(i)
        going_on = []
        for members in positions.values():
            mine = torch.tensor(members)
            chosen = self.policy(scores[mine], self.rung_index)
            if self.diversity and self.rung_index == self.rung_count - 1:
                maps = [tap[mine.to(tap.device)] for tap in stage.maps.values()]
                chosen = spread_out(scores[mine], maps, len(chosen), self.diversity)
            going_on += [members[i] for i in chosen]
        drawn = [i for i, candidate in enumerate(stage.candidates) if candidate in self.drawn]
        stage.keep([*going_on, *drawn])
        self.running = [stage.candidates[i] for i in going_on]
        self.rung_index += 1

    def order(self) -> list[Candidate]:
        """Who runs, or is finished, best first in each prompt."""
        return self.running
