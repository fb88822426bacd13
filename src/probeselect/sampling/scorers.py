"""Scorers: what is known of running candidates at a rung -> a predicted score for each.

Knows `random`, `preview:EVALUATOR` (the decoded x0-prediction, judged by the evaluator: needs no training, fits every
backbone) and the probe. Scores of one scorer compare within a prompt; higher is better.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import X0, Tap
from probeselect.core.errors import UsageError
from probeselect.embedded import SHIPPED
from probeselect.evaluators.base import Evaluator, check_prompts
from probeselect.evaluators.table import load_evaluator, parse_evaluator
from probeselect.probe.files import load_probe
from probeselect.probe.network import Probe
from probeselect.sampling.rollout import Stage


class Scorer(Protocol):
    """Partial candidates -> predicted score.

    It may also have `check_prompts`, as evaluators do, and `check_rungs(rungs)`: asked before anything is made.
    """

    name: str
    taps: tuple[Tap, ...]  # what a stage must hold
    previews: bool  # whether it must hold decoded x0-predictions

    def __call__(self, stage: Stage) -> Tensor:
        """Scores [N] of the stage's candidates; NaN ranks last."""
        ...


class RandomScorer:
    """A fair draw that is the same for the same prompt, seed and rung."""

    name = "random"
    taps: tuple[Tap, ...] = ()
    previews = False

    def __call__(self, stage: Stage) -> Tensor:
        return torch.tensor([random.Random(f"{c.prompt}\0{c.seed}\0{stage.rung}").random() for c in stage.candidates])


class PreviewScorer:
    """The evaluator's reward of the decoded x0-prediction."""

    taps: tuple[Tap, ...] = ()
    previews = True

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.name = f"preview:{evaluator.name}"

    def check_prompts(self, prompts: Sequence[str]) -> None:
        check_prompts(self.evaluator, prompts)

    def __call__(self, stage: Stage) -> Tensor:
        if stage.pictures is None:
            raise UsageError(f"scorer {self.name}: needs previews, and this stage has none")
        return self.evaluator(stage.pictures, [c.prompt for c in stage.candidates])


class ProbeScorer:
    """A trained probe's prediction for one of its evaluators."""

    previews = False

    def __init__(self, probe: Probe, backbone: Backbone, name: str, head: str | None = None) -> None:
        self.probe, self.name = probe, name
        self.head = head or probe.config.default_head
        probe.check_fits(backbone.describe())
        self.taps = tuple(X0 if tap == X0.name else Tap.parse(tap, backbone.family) for tap in probe.config.taps)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        check_prompts(self.probe.formula(self.head), prompts)

    def check_rungs(self, rungs: Sequence[float]) -> None:
        for rung in rungs:
            self.probe.check_rung(rung)

    def __call__(self, stage: Stage) -> Tensor:
        prompts = [c.prompt for c in stage.candidates]
        with torch.no_grad():
            return self.probe.score(stage.maps, stage.rung, prompts, stage.prompt_embeddings, self.head)


class FusionScorer:
    """A probe's prediction and the reward of the decoded x0-prediction as one score, by the probe's own weights."""

    previews = True

    def __init__(self, probe: ProbeScorer, preview: PreviewScorer, name: str) -> None:
        self.probe, self.preview, self.name, self.taps = probe, preview, name, probe.taps
        if not any(fusion.evaluator == probe.head for fusion in probe.probe.config.fusions):
            raise UsageError(f"scorer {name}: the probe has no fusion for {probe.head}; train it on data with previews")

    def check_prompts(self, prompts: Sequence[str]) -> None:
        self.probe.check_prompts(prompts)
        self.preview.check_prompts(prompts)

    def check_rungs(self, rungs: Sequence[float]) -> None:
        self.probe.check_rungs(rungs)
        for rung in rungs:
            self.probe.probe.fusion(self.probe.head, rung)

    def __call__(self, stage: Stage) -> Tensor:
        fused = self.probe.probe.fusion(self.probe.head, stage.rung)
        scores = self.probe(stage)
        return fused(scores, self.preview(stage).to(scores.device))


def load_scorer(name: str | Scorer, backbone: Backbone, head: str | None = None) -> Scorer:
    """ "random", "preview:EVALUATOR[=FOLDER]", "embedded" (what ships for the backbone), a probe's folder or hub id, or
    "fusion:PROBE" with one of these probes.

    Raises UsageError for a name that is none of these and for a probe that does not fit the backbone.
    """
    if not isinstance(name, str):
        return name
    if name == "random":
        return RandomScorer()
    if name.startswith("preview:"):
        evaluator, weights = parse_evaluator(name.removeprefix("preview:"))
        return PreviewScorer(load_evaluator(evaluator, weights, device=backbone.pipe.device))
    folder = name.removeprefix("fusion:")
    probe = load_probe(_shipped_probe(folder, backbone) or folder).to(backbone.pipe.device)
    scorer = ProbeScorer(probe, backbone, name, head)
    if folder == name:
        return scorer
    judge = probe.formula(scorer.head) or load_evaluator(scorer.head, device=backbone.pipe.device)
    return FusionScorer(scorer, PreviewScorer(judge), name)


def _shipped_probe(name: str, backbone: Backbone) -> Path | None:
    """The folder of the probe that "embedded" or an embedded backbone's name stands for."""
    if name == "embedded" and backbone.name in SHIPPED:
        return SHIPPED[backbone.name].probe
    return SHIPPED[name].probe if name in SHIPPED else None
