"""Scorers that are no probe: a fair draw, the judged preview, the preview beside a probe, anybody's function."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage
from probeselect.data.table import Table
from probeselect.evaluators.base import Evaluator, check_prompts, judge
from probeselect.probe.config import RUNG_TOLERANCE, Fusion
from probeselect.probe.scorer import ProbeScorer


class RandomScorer:
    """A fair draw that is the same for the same prompt, seed and rung: what any other scorer must beat."""

    name, taps, previews = "random", (), False

    def __call__(self, stage: Stage) -> Tensor:
        return torch.tensor([random.Random(f"{c.prompt}\0{c.seed}\0{stage.rung}").random() for c in stage.candidates])


class PreviewScorer:
    """An evaluator's reward of the decoded x0-prediction: as it was stored, else of the stage's pictures.

    evaluator: its name alone, where all previews have been judged before.
    """

    taps, previews = (), True

    def __init__(self, evaluator: Evaluator | str) -> None:
        self.evaluator = None if isinstance(evaluator, str) else evaluator
        self.judge = evaluator if isinstance(evaluator, str) else evaluator.name
        self.name = f"preview:{self.judge}"

    def check_prompts(self, prompts: Sequence[str]) -> None:
        check_prompts(self.evaluator, prompts)

    def can_read(self, table: Table, rung: float) -> bool:
        rewards = table.tensors.get(f"preview/{self.judge}/{rung:g}")
        return rewards is not None and bool(rewards.isfinite().any())

    def __call__(self, stage: Stage) -> Tensor:
        if self.judge in stage.preview_rewards:
            return stage.preview_rewards[self.judge]
        if stage.pictures is None or self.evaluator is None:
            raise UsageError(f"scorer {self.name}: needs previews, and this stage has none")
        return judge(self.evaluator, stage.pictures, stage.prompts)[1]


class FusionScorer:
    """A probe's prediction and the preview's reward as one score, by the weights that the probe was stored with."""

    previews = True

    def __init__(self, probe: ProbeScorer, preview: PreviewScorer, name: str = "fusion") -> None:
        self.probe, self.preview, self.name, self.taps = probe, preview, name, probe.taps

    def check_prompts(self, prompts: Sequence[str]) -> None:
        self.probe.check_prompts(prompts)
        self.preview.check_prompts(prompts)

    def check_rungs(self, rungs: Sequence[float]) -> None:
        self.probe.check_rungs(rungs)
        for rung in rungs:
            self._fusion(rung)

    def can_read(self, table: Table, rung: float) -> bool:
        return self.preview.can_read(table, rung) and bool(self._near(rung))

    def __call__(self, stage: Stage) -> Tensor:
        scores = self.probe(stage)
        return self._fusion(stage.rung)(scores, self.preview(stage).to(scores.device))

    def _near(self, rung: float) -> list[Fusion]:
        fitted = (f for f in self.probe.probe.config.fusions if f.evaluator == self.probe.head)
        return [f for f in fitted if abs(f.rung - rung) <= RUNG_TOLERANCE]

    def _fusion(self, rung: float) -> Fusion:
        """The weights near a rung. Raises UsageError where none were fitted."""
        if not (near := self._near(rung)):
            known = ", ".join(f"{f.evaluator} at {f.rung:g}" for f in self.probe.probe.config.fusions)
            raise UsageError(
                f"scorer {self.name}: the probe has no weights for {self.probe.head} at {rung:g}; "
                f"it has: {known or 'none, train it on data with previews'}"
            )
        return min(near, key=lambda f: abs(f.rung - rung))


class FunctionScorer:
    """Anybody's function of a Stage that gives a score for each of its candidates; it is shown decoded previews."""

    taps, previews = (), True

    def __init__(self, function: Callable[[Stage], Any]) -> None:
        if not callable(function):
            raise UsageError(f"scorer {function!r}: is no name, no Scorer and no function of a Stage")
        self.function = function
        self.name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")

    def __call__(self, stage: Stage) -> Tensor:
        scores = torch.as_tensor(self.function(stage), dtype=torch.float32).flatten()
        if len(scores) != len(stage.candidates):
            raise UsageError(f"scorer {self.name}: gave {len(scores)} scores for {len(stage.candidates)} candidates")
        return scores
