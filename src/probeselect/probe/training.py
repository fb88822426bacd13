"""Trains a probe on tables of groups: AdamW, warm-up and cosine, averaged weights, early stopping on val prompts.

A generator, so the caller logs, saves and stops. Everything random is drawn from the seed and the number of the epoch
or step, so a run that goes on from a saved state ends with the very same weights. Imports no diffusers.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from probeselect.core.metrics import gain_share, within_prompt_spearman
from probeselect.data.dataset import scores_of
from probeselect.data.table import Table
from probeselect.evaluators.base import Evaluator
from probeselect.probe.losses import annealed
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.objective import Objective
from probeselect.probe.options import TrainOptions
from probeselect.probe.scorer import ProbeScorer


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


class Training:
    """A probe in training. `epochs()` goes on from wherever it stands; `state` and `restore` put it on the disk.

    rank, world: this process among those that train together; each takes its share of every batch.
    """

    def __init__(
        self,
        probe: ProbeNetwork,
        train: Table,
        val: Table,
        evaluators: Mapping[str, Evaluator],
        options: TrainOptions,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        torch.manual_seed(options.seed)
        probe.evaluators.update(evaluators)
        self.probe, self.train, self.val, self.options = probe, train, val, options
        self.rank, self.world = rank, world
        self.objective = Objective(probe, train, options)
        self.objective.to(next(probe.parameters()).device)
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), options.rate, weight_decay=options.weight_decay)
        self.average = {name: value.detach().clone() for name, value in probe.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.best_spearman, self.best_epoch = -math.inf, -1
        self.epoch = self.step = 0
        self.batches = -(-len(train) // options.groups_per_batch)

    def epochs(self) -> Iterator[Epoch]:
        """Train; yield after every epoch, while the probe holds the averaged weights. At the end it holds the best."""
        options = self.options
        while self.epoch < options.epochs and not self._has_stalled():
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
        patience = self.options.patience
        return patience is not None and self.best_epoch >= 0 and self.epoch - self.best_epoch > patience

    def _one_epoch(self) -> float:
        options, rungs = self.options, self.probe.config.rungs
        total = options.epochs * self.batches
        draw = torch.Generator().manual_seed(options.seed * 1_000_003 + self.epoch)
        self.probe.train()
        losses = []
        for rows in torch.randperm(len(self.train), generator=draw).split(options.groups_per_batch):
            rung = rungs[int(torch.randint(len(rungs), (), generator=draw))]
            done = self.step / max(total - 1, 1)
            loss = self.objective(
                rows,
                rung,
                annealed(options.temperature, done),
                annealed(options.margin, done),
                self._share(len(rows)),
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._share_gradients()
            nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = options.rate * warmup_and_cosine(self.step, total, options.warmup)
            self.optimizer.step()
            self.step += 1
            decay = min(options.ema_decay, (1 + self.step) / (10 + self.step))
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
            scorer = ProbeScorer(self.probe, head.evaluator)
            for rung in self.probe.config.rungs:
                scores = scores_of(scorer, self.val, rung).numpy()
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
