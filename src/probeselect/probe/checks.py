"""What a trained probe must show: nothing when it is blind, and whether a preview beside it would help."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from probeselect.core.metrics import Floats, bootstrap_interval, pooled_spearman, within_prompt_spearman
from probeselect.data.dataset import scores_of
from probeselect.data.table import Table
from probeselect.probe.blind import shuffled_activations, without_activations
from probeselect.probe.config import Fusion
from probeselect.probe.fusion import fit_fusion
from probeselect.probe.initial import new_probe
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.options import TrainOptions
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.training import Training

TEXT_ONLY_GROUPS, TEXT_ONLY_EPOCHS = 512, 2
LEAK_ERRORS = 3.5  # standard errors from zero at which a blind scorer's figure is a leak


@dataclass(frozen=True)
class Verdict:
    """What a scorer that cannot see a candidate knows of it: any skill within a prompt is a leak, not foresight."""

    spearman: float  # within prompts, mean
    standard_error: float
    leak: bool


@dataclass(frozen=True, kw_only=True)
class Leak(Verdict):
    """The verdict on a blind probe that foresees an evaluator."""

    check: str
    evaluator: str
    pooled_spearman: float


@dataclass(frozen=True)
class Fused:
    """Spearman within prompts of a fusion and of what it is made of, and its lead over the better of these."""

    evaluator: str
    rung: float
    weights: tuple[float, float]  # of the probe's score and of the preview's reward
    fused: float
    probe: float
    preview: float
    lead: float
    lead_interval: tuple[float, float]


def text_only_probe(
    like: ProbeNetwork,
    train: Table,
    val: Table,
    options: TrainOptions,
    device: torch.device | str = "cpu",
) -> ProbeNetwork:
    """A probe of the same kind, trained for a while on some prompts without their activations."""
    config = like.config
    train = without_activations(train.take(torch.arange(min(TEXT_ONLY_GROUPS, len(train)))))
    options = replace(options, epochs=TEXT_ONLY_EPOCHS, patience=None)
    projections = {tap: like.basis(tap).cpu() for tap in config.taps}
    torch.manual_seed(options.seed)
    probe = new_probe(train, config.heads, config.backbone, config, config.rungs, projections, config.width).to(device)
    for _ in Training(probe, train, without_activations(val), like.evaluators, options).epochs():
        pass
    return probe


def leaks(probe: ProbeNetwork, text_only: ProbeNetwork, val: Table) -> list[Leak]:
    """What blind probes say of the val prompts.

    One was trained on the prompt alone, so its pooled figure is what prompts give without looking at candidates; the
    other is the probe itself, told about another candidate of the prompt.
    """
    found = []
    for check, blind, table in (
        ("text only", text_only, without_activations(val)),
        ("shuffled", probe, shuffled_activations(val)),
    ):
        for head in blind.config.heads:
            name = head.evaluator
            rewards, valid = val.tensors[f"reward/{name}"].numpy(), val.valid(name).numpy()
            scores = scores_of(ProbeScorer(blind, name), table, blind.config.rungs[-1]).numpy()
            per_prompt = within_prompt_spearman(scores, rewards, valid).per_prompt
            said, pooled = verdict(per_prompt, valid.shape[1], check), pooled_spearman(scores, rewards, valid)
            found.append(Leak(**vars(said), check=check, evaluator=name, pooled_spearman=pooled))
    return found


def verdict(per_prompt: Floats, n: int, check: str) -> Verdict:
    """Whether a blind scorer's mean Spearman over prompts of n candidates is zero within error.

    Shuffling by a roll leaves a scorer with skill a little below zero: it is told about another candidate, and a good
    one elsewhere makes a bad one here more likely; by 1 / (n - 1) at most.
    """
    mean = float(per_prompt.mean()) if len(per_prompt) else 0.0
    error = float(per_prompt.std() / max(len(per_prompt), 1) ** 0.5) if len(per_prompt) else 0.0
    lowest = -1 / (n - 1) if check == "shuffled" and n > 1 else 0.0
    leak = mean > LEAK_ERRORS * error or mean < lowest - LEAK_ERRORS * error
    return Verdict(round(mean, 4), round(error, 4), bool(leak))


def fuse(probe: ProbeNetwork, val: Table, test: Table) -> tuple[tuple[Fusion, ...], list[Fused]]:
    """Fusions with judged previews, where there are any, fitted on val; and whether they help, measured on test."""
    fusions, found = [], []
    for head in probe.config.heads:
        scorer = ProbeScorer(probe, head.evaluator)
        for rung in probe.config.rungs:
            name = f"preview/{head.evaluator}/{rung:g}"
            if name not in val.tensors:
                continue
            scores = scores_of(scorer, val, rung).numpy()
            fusions.append(fit_fusion(head.evaluator, rung, scores, *_judged(val, head.evaluator, name)))
            scores = scores_of(scorer, test, rung).numpy()
            found.append(_helped(fusions[-1], scores, *_judged(test, head.evaluator, name)))
    return tuple(fusions), found


def _judged(table: Table, evaluator: str, preview: str) -> tuple[Any, Any, Any]:
    """Previews' rewards, rewards, and which candidates have both; all [G, N]."""
    previews = table.tensors[preview]
    valid = table.valid(evaluator) & previews.isfinite()
    return previews.numpy(), table.tensors[f"reward/{evaluator}"].numpy(), valid.numpy()


def _helped(fusion: Fusion, scores: Any, previews: Any, rewards: Any, valid: Any) -> Fused:
    fused = fusion(torch.from_numpy(scores), torch.from_numpy(previews)).numpy()
    each = {"fused": fused, "probe": scores, "preview": previews}
    within = {name: within_prompt_spearman(table, rewards, valid) for name, table in each.items()}
    better = max(("probe", "preview"), key=lambda name: within[name].mean)
    lead = within["fused"].per_prompt - within[better].per_prompt
    return Fused(
        fusion.evaluator, fusion.rung, (fusion.probe, fusion.preview), **{n: found.mean for n, found in within.items()},
        lead=float(lead.mean()) if len(lead) else float("nan"), lead_interval=bootstrap_interval(np.mean, lead),
    )  # fmt: skip
