"""Trains a probe on tables of groups: AdamW, warm-up and cosine, averaged weights, early stopping on val prompts.

A generator, so the caller logs, saves and stops. Everything random is drawn from the seed and the number of the epoch
or step, so a run that goes on from a saved state ends with the very same weights. Imports no diffusers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probeselect.core.errors import UsageError
from probeselect.core.losses import annealed
from probeselect.core.metrics import gain_share, within_prompt_spearman
from probeselect.data.table import Stored, Table
from probeselect.evaluators.base import Evaluator
from probeselect.probe.network import Head, Probe, ProbeConfig
from probeselect.probe.objective import Batch, Objective, Weights, batch_of

STATISTICS_GROUPS = 256  # of which the standardisation is measured
STATISTICS_AT_ONCE = 8


@dataclass(frozen=True)
class TrainingSettings:
    """The losses and the schedule. The ranking's temperature and margin fall over the run, coarse to fine."""

    epochs: int = 10
    groups_per_batch: int = 8
    rate: float = 2e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.02
    weights: Weights = field(default_factory=Weights)
    temperature: tuple[float, float] = (1.0, 0.25)  # in units of the spread of scores within a prompt
    margin: tuple[float, float] = (0.4, 0.0)  # in units of the evaluator's spread within a prompt
    ema_decay: float = 0.99
    patience: int | None = None  # epochs without a better val figure; None: all epochs
    bf16: bool = False  # the encoder's arithmetic; worth it where the processor multiplies bf16 faster
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "groups_per_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not 0 < self.rate < 1 or not 0 <= self.ema_decay < 1 or not 0 <= self.warmup < 1:
            raise UsageError(f"rate {self.rate}, ema_decay {self.ema_decay}, warmup {self.warmup}: must be below 1")
        if min(self.temperature) <= 0 or min(self.margin) < 0:
            raise UsageError(f"temperature {self.temperature} must be above 0, margin {self.margin} not below")


@dataclass(frozen=True)
class Figures:
    """Of one head at one rung on the val groups."""

    spearman: float  # within prompts
    gain: float  # share of the best-of-N gain


@dataclass(frozen=True)
class Epoch:
    """One epoch's mean loss and, with averaged weights, the figures on the val groups by (evaluator, rung)."""

    epoch: int
    loss: float
    figures: dict[tuple[str, float], Figures]
    best: bool  # the best so far

    @property
    def spearman(self) -> float:
        """Mean over heads and rungs: what early stopping goes by."""
        return float(np.mean([figures.spearman for figures in self.figures.values()]))


def new_probe(
    table: Table,
    heads: Sequence[Head],
    backbone: Mapping[str, Any],
    rungs: Sequence[float],
    projections: Mapping[str, Tensor],
    width: int = 48,
) -> Probe:
    """A probe for the maps of `table`, standardised by the statistics of some of its groups.

    projections: tap -> the basis [P, C] that its maps were collected with. backbone: name, denoiser, architecture,
    latent_channels.
    """
    shapes = {tap: table.tensors[f"map/{tap}/{rungs[0]:g}"].shape for tap in projections}  # [G, N, P, H, W]
    config = ProbeConfig(
        backbone=backbone["name"],
        denoiser=backbone["denoiser"],
        architecture=backbone["architecture"],
        latent_channels=backbone["latent_channels"],
        taps=tuple(projections),
        tap_channels=tuple(basis.shape[1] for basis in projections.values()),
        projected_channels=tuple(basis.shape[0] for basis in projections.values()),
        rungs=tuple(float(r) for r in rungs),
        heads=tuple(heads),
        prompt_width=table.tensors["prompt"].shape[1] if "prompt" in table.tensors else 0,
        grid=max(min(shape[-2:]) for shape in shapes.values()),
        width=width,
    )
    probe = Probe(config)
    some = torch.arange(0, len(table), max(1, len(table) // STATISTICS_GROUPS))
    for i, tap in enumerate(config.taps):
        probe.get_buffer(f"projection_{i}").copy_(projections[tap])
        mean, std = _channel_statistics(table, [f"map/{tap}/{rung:g}" for rung in config.rungs], some)
        probe.get_buffer(f"mean_{i}").copy_(mean)
        probe.get_buffer(f"std_{i}").copy_(std)
    for i, head in enumerate(config.heads):
        if head.kind == "features":
            mean, std = _channel_statistics(table, [f"features/{head.evaluator}"], some)
            probe.get_buffer(f"feature_mean_{i}").copy_(mean)
            probe.get_buffer(f"feature_std_{i}").copy_(std)
    return probe


def _channel_statistics(table: Table, names: Sequence[str], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread [C] over valid, finite candidates of tensors [G, N, C, ...], read a few groups at a time."""
    count, total, square = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for name in names:
        for part in rows.split(STATISTICS_AT_ONCE):
            values = table.tensors[name][part][table.tensors["valid"][part]]  # [M, C, ...]
            values = values[values.flatten(1).isfinite().all(1)].double()
            flat = values.flatten(2).transpose(0, 1).flatten(1) if values.ndim > 2 else values.T  # [C, M * ...]
            count, total, square = count + flat.shape[1], total + flat.sum(1), square + flat.square().sum(1)
    mean = total / max(count, 1)
    return mean.float(), (square / max(count, 1) - mean.square()).clamp_min(0).sqrt().clamp_min(1e-4).float()


def predict_table(
    probe: Probe, table: Table, rung: float, evaluator: str, formula: Evaluator | None, groups_per_batch: int = 32
) -> Tensor:
    """Scores [G, N] by the head of `evaluator` at a rung; `formula` scores predicted features (None: scalar head)."""
    device, parts = next(probe.parameters()).device, []
    with torch.no_grad():
        for rows in torch.arange(len(table)).split(groups_per_batch):
            batch = batch_of(table, probe.config, rows, rung, device)
            parts.append(_scores_of(probe, batch, evaluator, formula).cpu())
    return torch.cat(parts)


def _scores_of(probe: Probe, batch: Batch, evaluator: str, formula: Evaluator | None) -> Tensor:
    encoded, condition = probe.encode(batch.maps, batch.rung, batch.spread_embeddings)
    predicted = probe.predict(encoded, condition, evaluator)
    scores = predicted if formula is None else formula.score(predicted, batch.prompts)
    return scores.view(batch.groups)


def formula_of(head: Head, evaluators: Mapping[str, Evaluator]) -> Evaluator | None:
    return evaluators[head.evaluator] if head.kind == "features" else None


class Training:
    """A probe in training. `epochs()` goes on from wherever it stands; `state` and `restore` put it on the disk.

    rank, world: this process among those that train together; each takes its share of every batch.
    """

    def __init__(
        self,
        probe: Probe,
        train: Table,
        val: Table,
        evaluators: Mapping[str, Evaluator],
        settings: TrainingSettings,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.probe, self.train, self.val, self.evaluators, self.settings = probe, train, val, evaluators, settings
        self.rank, self.world = rank, world
        self.objective = Objective(probe, train, evaluators, settings.weights, settings.bf16)
        self.objective.to(next(probe.parameters()).device)
        self.optimizer = torch.optim.AdamW(
            self.objective.parameters(), settings.rate, weight_decay=settings.weight_decay
        )
        self.average = {name: value.detach().clone() for name, value in probe.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.best_spearman, self.best_epoch = -math.inf, -1
        self.epoch = self.step = 0
        self.batches = -(-len(train) // settings.groups_per_batch)

    def epochs(self) -> Iterator[Epoch]:
        """Train; yield after every epoch, while the probe holds the averaged weights. At the end it holds the best."""
        settings = self.settings
        while self.epoch < settings.epochs and not self._has_stalled():
            loss = self._one_epoch()
            current = {name: value.clone() for name, value in self.probe.state_dict().items()}
            self.probe.load_state_dict(self.average)
            self.probe.eval()
            figures = self._figures()
            epoch = Epoch(self.epoch, loss, figures, False)
            if epoch.spearman > self.best_spearman:
                self.best_spearman, self.best_epoch = epoch.spearman, self.epoch
                self.best = {name: value.clone() for name, value in self.average.items()}
                epoch = Epoch(self.epoch, loss, figures, True)
            self.epoch += 1
            self.current = current
            yield epoch
            self.probe.load_state_dict(current)
        self.probe.load_state_dict(self.best)
        self.probe.eval()

    def _has_stalled(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best_epoch >= 0 and self.epoch - self.best_epoch > patience

    def _one_epoch(self) -> float:
        settings, rungs = self.settings, self.probe.config.rungs
        total = settings.epochs * self.batches
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.epoch)
        self.probe.train()
        losses = []
        for rows in torch.randperm(len(self.train), generator=draw).split(settings.groups_per_batch):
            rung = rungs[int(torch.randint(len(rungs), (), generator=draw))]
            done = self.step / max(total - 1, 1)
            loss = self.objective(
                rows,
                rung,
                annealed(settings.temperature, done),
                annealed(settings.margin, done),
                self._share(len(rows)),
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._share_gradients()
            nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = settings.rate * warmup_and_cosine(self.step, total, settings.warmup)
            self.optimizer.step()
            self.step += 1
            decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
            for name, value in self.probe.state_dict().items():
                self.average[name].lerp_(value.to(self.average[name].dtype), 1 - decay)
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def _share(self, rows: int) -> slice:
        """This process's part of a batch; the last ones take nothing more than is there, but at least one group."""
        size = -(-rows // self.world)
        first = min(self.rank * size, rows - 1)
        return slice(first, min(first + size, rows))

    def _share_gradients(self) -> None:
        if self.world > 1:
            for parameter in self.objective.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world

    def _figures(self) -> dict[tuple[str, float], Figures]:
        figures = {}
        for head in self.probe.config.heads:
            rewards = self.val.tensors[f"reward/{head.evaluator}"].numpy()
            valid = self.val.valid(head.evaluator).numpy()
            for rung in self.probe.config.rungs:
                formula = formula_of(head, self.evaluators)
                scores = predict_table(self.probe, self.val, rung, head.evaluator, formula).numpy()
                spearman = within_prompt_spearman(scores, rewards, valid).mean
                figures[head.evaluator, rung] = Figures(spearman, gain_share(scores, rewards, valid))
        return figures

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs, after an epoch has been yielded."""
        tensors = {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"probe.{k}": v for k, v in self.current.items()}
        others = {k: v for k, v in self.objective.state_dict().items() if not k.startswith("probe.")}
        tensors |= {f"objective.{k}": v for k, v in others.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slots.items()}
        figures = [self.epoch, self.step, self.best_epoch, self.best_spearman]
        return tensors | {"progress": torch.tensor(figures, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.average, self.best = part("average."), part("best.")
        self.objective.load_state_dict({f"probe.{k}": v for k, v in part("probe.").items()} | part("objective."))
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            index, _, name = key.partition(".")
            slots.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        epoch, step, best_epoch, best = state["progress"].tolist()
        self.epoch, self.step, self.best_epoch, self.best_spearman = int(epoch), int(step), int(best_epoch), best


def warmup_and_cosine(step: int, total: int, warmup: float) -> float:
    """Factor of the rate: linear from 0 to 1 over the first share `warmup` of the steps, then half a cosine to 0."""
    first = warmup * total
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(total - first, 1)))


def without_activations(table: Table) -> Table:
    """The same groups with every activation replaced by its prompt's mean: only the prompt is left to read."""
    return _with_maps(table, lambda maps: maps.float().mean(1, keepdim=True).expand_as(maps).half())


def shuffled_activations(table: Table, seed: int = 0) -> Table:
    """The same groups with every candidate given the activations of another one of its prompt."""
    shift = 1 + seed % max(table.tensors["valid"].shape[1] - 1, 1)
    return _with_maps(table, lambda maps: maps.roll(shift, 1))


def _with_maps(table: Table, change: Any) -> Table:
    everything = torch.arange(len(table))
    maps = {
        name: change(values[everything] if isinstance(values, Stored) else values)
        for name, values in table.tensors.items()
        if name.startswith("map/")
    }
    return Table(table.prompts, table.tensors | maps)
