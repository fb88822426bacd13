"""What a probe is trained to make small: for every head a ranking loss and distillation, and contrast with the prompt.

Knows one batch of groups; does not know epochs, optimizers or files.
"""

import torch
from torch import Tensor, nn

from probeselect.core.errors import UsageError
from probeselect.data.table import Table
from probeselect.probe.losses import (
    feature_distillation,
    info_nce,
    listnet,
    listwise,
    pairwise_logistic,
    standardised_regression,
)
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.options import Ranking, TrainOptions

CONTRAST_TEMPERATURE = 0.1


def within_prompt_spread(rewards: Tensor, valid: Tensor) -> float:
    """Root mean square of the rewards' distance from their prompt's mean; 1 where they do not differ."""
    count = valid.sum(1, keepdim=True)
    kept = rewards.masked_fill(~valid, 0)
    centred = (kept - kept.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~valid, 0)
    freedom = (count - 1).clamp(min=0).sum().clamp(min=1)
    return float((centred.square().sum() / freedom).sqrt()) or 1.0


class Objective(nn.Module):
    """The loss of a probe on groups of a table.

    A module because Eq. 6 brings weights of its own, the projection of the prompt embedding. Raises UsageError for a
    head that no loss would train.
    """

    def __init__(self, probe: ProbeNetwork, table: Table, options: TrainOptions) -> None:
        super().__init__()
        for head in probe.config.heads:
            if not options.ranking_weight and (head.kind == "scalar" or not options.distillation_weight):
                raise UsageError(f"ranking_weight = 0: must be above 0, nothing else trains the head {head.evaluator}")
        self.probe, self.table, self.options = probe, table, options
        self.valid = {head.evaluator: table.valid(head.evaluator) for head in probe.config.heads}  # [G, N]
        self.rewards = {name: table.tensors[f"reward/{name}"] for name in self.valid}
        self.spread = {name: within_prompt_spread(self.rewards[name], mask) for name, mask in self.valid.items()}
        width = probe.config.prompt_width
        self.text_projection = nn.Linear(width, 2 * probe.config.width) if width and options.contrast_weight else None

    def forward(
        self, rows: Tensor, rung: float, temperature: float, margin: float, part: slice = slice(None)
    ) -> Tensor:
        """Loss of groups `rows[part]` at `rung`; the texts of all `rows` are negatives of Eq. 6.

        `temperature` and `margin` are in units of each evaluator's own spread within a prompt.
        """
        device = next(self.probe.parameters()).device
        own = rows[part]
        stage = self.table.stage(own, rung, self.probe.config.taps)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.bf16):
            encoded, condition = self.probe.encode_stage(stage)
        encoded, condition = encoded.float(), condition.float()
        losses = [
            self._head_loss(head.evaluator, encoded, condition, stage.prompts, own, temperature, margin)
            for head in self.probe.config.heads
        ]
        loss = torch.stack(losses).mean()
        if self.text_projection is not None:
            pooled = torch.cat([encoded.mean((2, 3)), encoded.amax((2, 3))], 1).unflatten(0, (len(own), -1))
            text = self.text_projection(self.table.tensors["prompt"][rows].float().to(device))  # [R, 2W]
            valid = self.table.tensors["valid"][own].to(device)
            first = range(len(rows))[part].start
            loss = loss + self.options.contrast_weight * info_nce(pooled, text, valid, CONTRAST_TEMPERATURE, first)
        return loss

    def _head_loss(
        self,
        name: str,
        encoded: Tensor,
        condition: Tensor,
        prompts: list[str],
        rows: Tensor,
        temperature: float,
        margin: float,
    ) -> Tensor:
        device = encoded.device
        predicted = self.probe.predict(encoded, condition, name)
        valid, rewards = self.valid[name][rows].to(device), self.rewards[name][rows].to(device)  # [R, N]
        loss = torch.zeros((), device=device)
        if (formula := self.probe.formula(name)) is not None:
            if self.options.distillation_weight:
                target = self.table.tensors[f"features/{name}"][rows].flatten(0, 1).float().to(device)
                loss = loss + self.options.distillation_weight * self._distance(name, predicted, target, valid)
            scores = formula.score(predicted, prompts).view(valid.shape) / self.spread[name]
        else:
            scores = predicted.view(valid.shape)
        if self.options.ranking_weight:
            units = rewards / self.spread[name]
            loss = loss + self.options.ranking_weight * rank_by(
                self.options.ranking, scores, units, valid, temperature, margin
            )
        return loss

    def _distance(self, name: str, predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """By the evaluator's own measure, else the mean square in units of each feature's spread; [N] to a mean."""
        keep = valid.flatten() & target.flatten(1).isfinite().all(1)
        own = getattr(self.probe.formula(name), "feature_distance", None)
        if not keep.any():
            return predicted.sum() * 0
        if own is not None:
            mean: Tensor = own(predicted[keep], target[keep]).mean()
            return mean
        ours, theirs = (self.probe.in_units(f[keep], name)[None] for f in (predicted, target))
        return feature_distillation(ours, theirs, torch.ones(ours.shape[:2], dtype=torch.bool, device=ours.device))


def rank_by(
    ranking: Ranking, scores: Tensor, rewards: Tensor, valid: Tensor, temperature: float, margin: float
) -> Tensor:
    """The ranking loss of that name; scores and rewards [P, N] in the same units."""
    if ranking == "pairwise":
        return pairwise_logistic(scores, rewards, valid, temperature, margin)
    if ranking == "listnet":
        return listnet(scores, rewards, valid, temperature)
    if ranking == "regression":
        return standardised_regression(scores, rewards, valid)
    return listwise(scores, rewards, valid, temperature, margin, "batch" if ranking == "listwise-batch" else "prompt")
