"""Stage `agreement`: whether the evaluators, which have seen renders only, agree on generated pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from probeselect.backbones.loading import load_backbone
from probeselect.core.candidates import candidates_of
from probeselect.core.metrics import bootstrap_interval, pooled_spearman, within_prompt_spearman
from probeselect.embedded.captions import draw_prompts
from probeselect.evaluators.table import load_evaluator
from probeselect.rollout.rollout import rollout
from research.embedded.groups import quick_denoiser, sampling


def agreement(weights: Path, prompt_count: int = 96) -> dict[str, dict[str, Any]]:
    """Of scene-clip and scene-itm with scene-check on generated pictures, five seeds of val prompts each.

    Spearman within prompts with its 95 % interval over prompts, and pooled.
    """
    prompts = list(draw_prompts(prompt_count, seed=13, split="val"))
    backbone = load_backbone(str(weights / "backbone"), device="cpu")
    with quick_denoiser(backbone):
        (stage,) = rollout(backbone, candidates_of(prompts, 5), [], batch_size=80, **sampling("embedded"))
    texts = [candidate.prompt for candidate in stage.candidates]
    rewards = {
        name: load_evaluator(name, weights / name)(stage.pictures or [], texts).view(prompt_count, 5).double().numpy()
        for name in ("scene-check", "scene-clip", "scene-itm")
    }
    ours = rewards.pop("scene-check")
    out = {}
    for name, theirs in rewards.items():
        within = within_prompt_spearman(theirs, ours)
        interval = bootstrap_interval(np.mean, within.per_prompt)
        out[name] = {"spearman": within.mean, "interval": interval, "pooled": pooled_spearman(theirs, ours)}
    return out
