"""Trains a probe on shards: the paper's two losses, and distillation of the evaluator's features.

Works on a table of groups in memory; a generator, so the caller logs, validates and stops. Imports no diffusers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probeselect.core.losses import feature_distillation, info_nce, listwise
from probeselect.core.metrics import gain_share, within_prompt_spearman
from probeselect.data.dataset import Dataset, Table
from probeselect.evaluators.base import Evaluator
from probeselect.probe.network import Head, Probe, ProbeConfig


@dataclass(frozen=True)
class TrainingSettings:
    """Weights of the losses and the schedule. The listwise temperature and margin fall over the run, coarse to fine."""

    epochs: int = 10
    groups_per_batch: int = 8
    rate: float = 2e-3
    weight_decay: float = 0.02
    listwise_weight: float = 0.3
    contrast_weight: float = 0.02
    distillation_weight: float = 1.0
    temperature: tuple[float, float] = (1.0, 0.25)  # in units of the spread of scores within a prompt
    margin: tuple[float, float] = (0.4, 0.0)  # in units of the evaluator's spread within a prompt
    ema_decay: float = 0.99
    bf16: bool = False  # the encoder's arithmetic; worth it where the CPU multiplies bf16 faster
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch's mean losses and, with averaged weights, the figures on the val groups."""

    epoch: int
    loss: float
    spearman: dict[float, float]  # rung -> within-prompt Spearman
    gain: dict[float, float]  # rung -> share of the best-of-N gain


def load_table(folder: Path, evaluator: str) -> Table:
    """All groups of a dataset in memory, as tensors; without those where an activation or a reward is not finite."""
    table = Dataset(folder).table(evaluators=[evaluator])
    tensors = {name: torch.from_numpy(values) for name, values in table.tensors.items()}
    whole = tensors["valid"].all(1) & tensors[f"reward/{evaluator}"].isfinite().all(1)
    rows = whole.nonzero()[:, 0]
    return Table([table.prompts[i] for i in rows.tolist()], {name: values[rows] for name, values in tensors.items()})


def new_probe(
    table: Table,
    head: Head,
    backbone: dict[str, Any],
    rungs: Sequence[float],
    taps: Sequence[tuple[str, int]],
    width: int = 48,
) -> Probe:
    """A probe for the maps of `table`, standardised by their statistics. `taps`: (name, channels as they come)."""
    stored = {tap: table.tensors[f"map/{tap}/{rungs[0]:g}"] for tap, _ in taps}  # [G, N, P, H, W]
    config = ProbeConfig(
        backbone=backbone["name"],
        denoiser=backbone["denoiser"],
        architecture=backbone["architecture"],
        latent_channels=backbone["latent_channels"],
        taps=tuple(tap for tap, _ in taps),
        tap_channels=tuple(channels for _, channels in taps),
        projected_channels=tuple(stored[tap].shape[2] for tap, _ in taps),
        rungs=tuple(float(r) for r in rungs),
        heads=(head,),
        prompt_width=table.tensors["prompt"].shape[1],
        grid=max(min(values.shape[-2:]) for values in stored.values()),
        width=width,
    )
    probe = Probe(config)
    for i, tap in enumerate(config.taps):
        values = torch.cat([table.tensors[f"map/{tap}/{rung:g}"].flatten(0, 1) for rung in config.rungs]).float()
        getattr(probe, f"mean_{i}").copy_(values.mean((0, 2, 3)))
        getattr(probe, f"std_{i}").copy_(values.std((0, 2, 3)).clamp_min(1e-4))
    if head.kind == "features":
        features = table.tensors[f"features/{head.evaluator}"].float().flatten(0, 1)  # [G * N, F, ...]
        others = [axis for axis in range(features.ndim) if axis != 1]
        probe.get_buffer("feature_mean_0").copy_(features.mean(others))
        probe.get_buffer("feature_std_0").copy_(features.std(others).clamp_min(1e-4))
    return probe


def inputs_of(table: Table, config: ProbeConfig, rows: Tensor, rung: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Projected maps {tap: [R * N, P, H, W]}, rung [R * N] and prompt embeddings [R * N, D] of groups `rows`."""
    maps = {tap: table.tensors[f"map/{tap}/{rung:g}"][rows].flatten(0, 1).float() for tap in config.taps}
    n = table.tensors["seeds"].shape[1]
    prompts = table.tensors["prompt"][rows].float().repeat_interleave(n, 0)
    return maps, torch.full((len(rows) * n,), rung), prompts


def predict_table(probe: Probe, table: Table, rung: float, evaluator: Evaluator, batch: int = 64) -> Tensor:
    """Scores [G, N] of every group at a rung."""
    n, parts = table.tensors["seeds"].shape[1], []
    with torch.no_grad():
        for rows in torch.arange(len(table.prompts)).split(batch):
            encoded, condition = probe.encode(*inputs_of(table, probe.config, rows, rung))
            predicted = probe.predict(encoded, condition, evaluator.name)
            texts = [table.prompts[i] for i in rows.tolist() for _ in range(n)]
            scalar = probe.config.heads[0].kind == "scalar"
            parts.append((predicted if scalar else evaluator.score(predicted, texts)).view(-1, n))
    return torch.cat(parts)


def train(
    probe: Probe, train_table: Table, val_table: Table, evaluator: Evaluator, settings: TrainingSettings
) -> Iterator[Epoch]:
    """Train `probe` in place; yield after every epoch. At each yield it holds the averaged weights."""
    torch.manual_seed(settings.seed)
    objective = Objective(probe, train_table, evaluator, settings)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    batches = -(-len(train_table.prompts) // settings.groups_per_batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=settings.epochs * batches, pct_start=0.1
    )
    average = torch.optim.swa_utils.AveragedModel(
        probe,
        avg_fn=lambda mean, new, seen: torch.lerp(mean, new, 1 - min(settings.ema_decay, (1 + seen) / (10 + seen))),
    )
    for epoch in range(settings.epochs):
        done = epoch / max(settings.epochs - 1, 1)
        temperature, margin = (a + (b - a) * done for a, b in (settings.temperature, settings.margin))
        probe.train()
        losses = []
        for rows in torch.randperm(len(train_table.prompts)).split(settings.groups_per_batch):
            rung = probe.config.rungs[int(torch.randint(len(probe.config.rungs), ()))]
            loss = objective(rows, rung, temperature, margin)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(probe)
            losses.append(loss.item())
        current = {k: v.clone() for k, v in probe.state_dict().items()}
        probe.load_state_dict(average.module.state_dict())
        probe.eval()
        yield _validate(probe, val_table, evaluator, epoch, sum(losses) / len(losses))
        if epoch + 1 < settings.epochs:
            probe.load_state_dict(current)


class Objective(nn.Module):
    """The loss of a probe on groups of a table: distillation, Eq. 5 and Eq. 6, each with its weight.

    A module because Eq. 6 brings weights of its own, the projection of the prompt embedding.
    """

    def __init__(self, probe: Probe, table: Table, evaluator: Evaluator, settings: TrainingSettings) -> None:
        super().__init__()
        self.probe, self.table, self.evaluator, self.settings = probe, table, evaluator, settings
        self.head = probe.config.heads[0]
        self.text_projection = nn.Linear(probe.config.prompt_width, 2 * probe.config.width)
        self.rewards = table.tensors[f"reward/{evaluator.name}"]  # [G, N]
        self.spread = float((self.rewards - self.rewards.mean(1, keepdim=True)).std())

    def forward(self, rows: Tensor, rung: float, temperature: float, margin: float) -> Tensor:
        """Loss of groups `rows` [R] at `rung`; `temperature` and `margin` in units of the spread within a prompt."""
        settings, rewards = self.settings, self.rewards[rows]  # [R, N]
        groups = tuple(rewards.shape)
        valid = torch.ones_like(rewards, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            encoded, condition = self.probe.encode(*inputs_of(self.table, self.probe.config, rows, rung))
        encoded, condition = encoded.float(), condition.float()
        predicted = self.probe.predict(encoded, condition, self.evaluator.name)
        loss = torch.zeros(())
        if self.head.kind == "features":
            target = self.table.tensors[f"features/{self.evaluator.name}"][rows].flatten(0, 1).float()
            loss = loss + settings.distillation_weight * self._distance(predicted, target)
            prompts = [self.table.prompts[i] for i in rows.tolist() for _ in range(groups[1])]
            scores = self.evaluator.score(predicted, prompts).view(groups) / self.spread
        else:
            scores = predicted.view(groups)
        if settings.listwise_weight:
            ranking = listwise(scores, rewards, valid, temperature, margin * self.spread)
            loss = loss + settings.listwise_weight * ranking
        if settings.contrast_weight:
            pooled = torch.cat([encoded.mean((2, 3)), encoded.amax((2, 3))], 1).unflatten(0, groups)  # [R, N, 2W]
            text = self.text_projection(self.table.tensors["prompt"][rows].float())  # [R, 2W]
            loss = loss + settings.contrast_weight * info_nce(pooled, text, valid, 0.1)
        return loss

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """By the evaluator's own measure, else the mean square in units of each feature's spread."""
        own = getattr(self.evaluator, "feature_distance", None)
        if own is not None:
            mean: Tensor = own(predicted, target).mean()
            return mean
        ours, theirs = (self.probe.in_units(f, self.head.evaluator)[None] for f in (predicted, target))
        return feature_distillation(ours, theirs, torch.ones(ours.shape[:2], dtype=torch.bool))


def _validate(probe: Probe, table: Table, evaluator: Evaluator, epoch: int, loss: float) -> Epoch:
    rewards = table.tensors[f"reward/{evaluator.name}"].numpy()
    spearman, gain = {}, {}
    for rung in probe.config.rungs:
        scores = predict_table(probe, table, rung, evaluator).numpy()
        spearman[rung] = within_prompt_spearman(scores, rewards).mean
        gain[rung] = gain_share(scores, rewards)
    return Epoch(epoch, loss, spearman, gain)
