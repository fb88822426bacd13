"""Collects what a probe learns from: activations at rungs, and what the evaluators say of the finished pictures.

Walks the same rollout as selective generation, with a policy that stops nobody. Rerun = resume: shards that are
there are left alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import Tap
from probeselect.core.candidates import candidates_of
from probeselect.data.shards import Shard, shard_path, write_shard
from probeselect.evaluators.base import Evaluator
from probeselect.probe.network import orthonormal, project
from probeselect.sampling.rollout import Stage, rollout


@dataclass(frozen=True)
class Plan:
    """What to collect of every prompt."""

    taps: tuple[Tap, ...]
    rungs: tuple[float, ...]
    n: int = 5
    projected_channels: int = 48  # a tap with more channels goes through the fixed projection
    previews: bool = False  # judge the decoded x0-predictions too
    groups_per_shard: int = 16
    seed: int = 0


def collect(
    backbone: Backbone,
    prompts: Sequence[str],
    evaluators: Sequence[Evaluator],
    plan: Plan,
    folder: Path,
    **arguments: Any,
) -> Iterator[int]:
    """Write the shards of `prompts` that are not there yet; yield the number of groups done after each."""
    for index, start in enumerate(range(0, len(prompts), plan.groups_per_shard)):
        part = list(prompts[start : start + plan.groups_per_shard])
        path = shard_path(folder, index)
        if not path.exists():
            write_shard(path, _collect_shard(backbone, part, evaluators, plan, start, arguments))
        yield start + len(part)


def _collect_shard(
    backbone: Backbone,
    prompts: list[str],
    evaluators: Sequence[Evaluator],
    plan: Plan,
    start: int,
    arguments: Any,
) -> Shard:
    first_seed = plan.seed + start * plan.n  # other noise for other prompts, whatever the shard
    candidates = [
        candidate
        for group, prompt in enumerate(prompts)
        for candidate in candidates_of(prompt, plan.n, seed=first_seed + group * plan.n)
    ]
    groups = (len(prompts), plan.n)
    tensors: dict[str, Tensor] = {"seeds": torch.tensor([c.seed for c in candidates]).view(groups)}
    for stage in rollout(backbone, candidates, plan.rungs, taps=plan.taps, previews=plan.previews, **arguments):
        texts = [candidate.prompt for candidate in stage.candidates]
        if stage.rung < 1:
            tensors |= _maps_of(stage, plan, groups)
            if plan.previews and stage.pictures:
                for evaluator in evaluators:
                    rewards = evaluator(stage.pictures, texts)
                    tensors[f"preview/{evaluator.name}/{stage.rung:g}"] = rewards.view(groups)
            if stage.prompt_embeddings is not None:
                tensors["prompt"] = stage.prompt_embeddings.unflatten(0, groups)[:, 0].half().cpu()
            continue
        for evaluator in evaluators:
            features = evaluator.features(stage.pictures or [])
            tensors[f"features/{evaluator.name}"] = features.unflatten(0, groups).half().cpu()
            tensors[f"reward/{evaluator.name}"] = evaluator.score(features, texts).detach().view(groups).float().cpu()
    return Shard(prompts, tensors)


def _maps_of(stage: Stage, plan: Plan, groups: tuple[int, int]) -> dict[str, Tensor]:
    maps = {}
    for i, (name, values) in enumerate(stage.maps.items()):
        basis = orthonormal(min(plan.projected_channels, values.shape[1]), values.shape[1], seed=i).to(values.device)
        maps[f"map/{name}/{stage.rung:g}"] = project(basis, values).unflatten(0, groups).half().cpu()
    return maps
