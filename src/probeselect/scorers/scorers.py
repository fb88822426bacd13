"""Scorers: what is known of running candidates at a rung -> a predicted score for each.

Knows `random`, `preview:EVALUATOR` (the decoded x0-prediction, judged by the evaluator: needs no training, fits every
backbone), `attention` (does every word own a place: needs no training, fits U-Nets) and the probe. Scores of one scorer
compare within a prompt; higher is better.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone, dtype_named
from probeselect.backbones.taps import ATTENTION, Tap
from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage
from probeselect.embedded import shipped_probe
from probeselect.evaluators.base import Evaluator, check_prompts
from probeselect.evaluators.base import judge as judge_pictures
from probeselect.evaluators.table import load_evaluator, parse_evaluator
from probeselect.probe.files import Probe, load_probe
from probeselect.rollout.around import execution_device
from probeselect.scorers.attention import neglect_scores, words_of


@runtime_checkable
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
        return judge_pictures(self.evaluator, stage.pictures, [c.prompt for c in stage.candidates])[1]


class AttentionScorer:
    """How much the most neglected word of the prompt owns of the U-Net's cross-attention, see `neglect_scores`.

    Raises UsageError for a backbone without such attention.
    """

    name = "attention"
    taps: tuple[Tap, ...] = (ATTENTION,)
    previews = False

    def __init__(self, backbone: Backbone) -> None:
        ATTENTION.check(backbone.denoiser)
        self.tokenizer = getattr(backbone.pipe, "tokenizer", None)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if len(words_of(prompt, self.tokenizer)) < 2:
                raise UsageError(f"scorer attention: weighs words against each other, and {prompt!r} has less than two")

    def __call__(self, stage: Stage) -> Tensor:
        words = {prompt: words_of(prompt, self.tokenizer) for prompt in {c.prompt for c in stage.candidates}}
        return neglect_scores(stage.maps[ATTENTION.name], [words[c.prompt] for c in stage.candidates])


class ProbeScorer:
    """A trained probe's prediction for one of its evaluators."""

    previews = False

    def __init__(self, probe: Probe, backbone: Backbone, name: str, head: str | None = None) -> None:
        self.probe, self.name = probe, name
        self.head = head or probe.config.default_head
        probe.check_fits(backbone.describe())
        self.taps = tuple(Tap.parse(tap, backbone.family) for tap in probe.config.taps)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        check_prompts(self.probe.formula(self.head), prompts)

    def check_rungs(self, rungs: Sequence[float]) -> None:
        for rung in rungs:
            self.probe.check_rung(rung)

    def __call__(self, stage: Stage) -> Tensor:
        prompts = [c.prompt for c in stage.candidates]
        with torch.no_grad():
            return self.probe.score(dict(stage.maps), stage.rung, prompts, stage.prompt_embeddings, self.head)


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


class FunctionScorer:
    """Anybody's function of a Stage that gives a score for each of its candidates; it is shown decoded previews."""

    taps: tuple[Tap, ...] = ()
    previews = True

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


def load_scorer(
    name: str | Scorer | Callable[[Stage], Any],
    backbone: Backbone,
    head: str | None = None,
    *,
    evaluator_device: str | torch.device | None = None,
    evaluator_dtype: str | torch.dtype | None = None,
) -> Scorer:
    """ "random", "attention", "preview:EVALUATOR[=FOLDER]", "embedded" (what ships for the backbone), a probe's folder
    or hub id, or "fusion:PROBE" with one of these probes.

    evaluator_device, evaluator_dtype: of an evaluator that judges previews; default: where the pipeline computes, also
    while its weights are offloaded, in float32.

    Raises UsageError for a name that is none of these and for a scorer that does not fit the backbone.
    """
    if not isinstance(name, str):
        return name if isinstance(name, Scorer) else FunctionScorer(name)
    if name == "random":
        return RandomScorer()
    if name == AttentionScorer.name:
        return AttentionScorer(backbone)
    device = execution_device(backbone.pipe)
    options: dict[str, Any] = {"device": evaluator_device or device, "dtype": dtype_named(evaluator_dtype)}
    if name.startswith("preview:"):
        evaluator, weights = parse_evaluator(name.removeprefix("preview:"))
        return PreviewScorer(load_evaluator(evaluator, weights, **options))
    folder = name.removeprefix("fusion:")
    probe = load_probe(shipped_probe(folder, backbone.name) or folder).to(device)
    scorer = ProbeScorer(probe, backbone, name, head)
    if folder == name:
        return scorer
    judge = probe.formula(scorer.head) or load_evaluator(scorer.head, **options)
    return FusionScorer(scorer, PreviewScorer(judge), name)
