"""The probe: taps at a rung -> predicted reward of the finished picture.

Knows maps, rungs and heads; does not know pipelines. Each tap goes through a fixed 1x1 projection (one basis for all
samples, stored with the weights) and fixed standardisation; a small U-shaped encoder, told the rung, mixes them.
A `scalar` head predicts the reward itself (the paper's probe); a `features` head predicts what the evaluator would
extract from the finished picture, which the evaluator's own formula then scores.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probeselect.core.description import Description
from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage
from probeselect.evaluators.base import Evaluator
from probeselect.probe.config import RUNG_TOLERANCE, Head, ProbeConfig, module_name
from probeselect.probe.maps import orthonormal, project, sinusoid, to_grid
from probeselect.probe.ranges import NORM_GROUPS


class _Block(nn.Module):
    """Residual block whose second norm is shifted and scaled by the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels, affine=False)
        self.modulate = nn.Linear(condition, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.modulate.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulate(condition)[:, :, None, None].chunk(2, 1)  # [N, C, 1, 1]
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class Encoder(nn.Module):
    """U-shaped: the fine grid, half of it, and back. Taps [N, P, H, W] in, of any sizes -> [N, width, g, g'] out.

    Each tap is mixed into `width` channels where it is small, before it is brought to the grid.
    """

    def __init__(self, channels: Sequence[int], grid: int, width: int, condition: int) -> None:
        super().__init__()
        self.grid = grid
        self.mixers = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.stem = nn.Conv2d(width, width, 3, padding=1)
        self.fine = nn.ModuleList(_Block(width, condition) for _ in range(2))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList(_Block(2 * width, condition) for _ in range(2))
        self.up = nn.Conv2d(2 * width, width, 1)
        self.last = _Block(width, condition)

    def forward(self, maps: Sequence[Tensor], condition: Tensor) -> Tensor:
        mixed = [to_grid(mixer(x).float(), self.grid) for mixer, x in zip(self.mixers, maps, strict=True)]
        x = self.stem(torch.stack(mixed).sum(0))
        for block in self.fine:
            x = block(x, condition)
        y = self.down(x)
        for block in self.coarse:
            y = block(y, condition)
        x = x + F.interpolate(self.up(y), size=x.shape[-2:], mode="nearest")
        out: Tensor = self.last(x, condition)
        return out


class ProbeNetwork(nn.Module):
    """The network of a `ProbeConfig`, and what it can be asked."""

    def __init__(self, config: ProbeConfig, bases: Sequence[Tensor] | None = None) -> None:
        """bases: [P, C] that each tap is projected by; None: random ones, always the same."""
        super().__init__()
        self.config = config
        self.evaluators: dict[str, Evaluator] = {}  # whose formulas score predicted features; others are loaded by name
        self.condition_width = 2 * config.width
        if bases is None:
            sizes = zip(config.projected_channels, config.tap_channels, strict=True)
            bases = [orthonormal(projected, channels, seed=i) for i, (projected, channels) in enumerate(sizes)]
        for i, (basis, projected) in enumerate(zip(bases, config.projected_channels, strict=True)):
            self.register_buffer(f"projection_{i}", basis)
            self.register_buffer(f"mean_{i}", torch.zeros(projected))
            self.register_buffer(f"std_{i}", torch.ones(projected))
        for i, head in enumerate(config.heads):
            if head.kind == "features":  # predicted in units of each feature's own spread
                self.register_buffer(f"feature_mean_{i}", torch.zeros(head.shape[0]))
                self.register_buffer(f"feature_std_{i}", torch.ones(head.shape[0]))
        self.rung_embedding = nn.Sequential(nn.Linear(16, self.condition_width), nn.SiLU())
        if config.prompt_width:
            self.prompt_embedding = nn.Linear(config.prompt_width, self.condition_width)
        self.encoder = Encoder(config.projected_channels, config.grid, config.width, self.condition_width)
        self.heads = nn.ModuleDict({module_name(head.evaluator): self._new_head(head) for head in config.heads})
        self.eval()

    def _new_head(self, head: Head) -> nn.Module:
        width = self.config.width
        if head.kind == "features" and len(head.shape) == 3:
            return nn.Sequential(nn.GroupNorm(NORM_GROUPS, width), nn.SiLU(), nn.Conv2d(width, head.shape[0], 1))
        out = 1 if head.kind == "scalar" else math.prod(head.shape)
        inner = self.condition_width
        return nn.Sequential(nn.Linear(2 * width + inner, inner), nn.SiLU(), nn.Linear(inner, out))

    def project(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Taps as they come, [N, C, H, W] -> [N, P, H, W], what is stored for training: one basis for all samples."""
        return {tap: project(self.basis(tap), maps[tap]) for tap in self.config.taps if tap in maps}

    def basis(self, tap: str) -> Tensor:
        """The basis [P, C] of a tap."""
        return self.get_buffer(f"projection_{self.config.taps.index(tap)}")

    def encode(
        self, projected: dict[str, Tensor], rung: Tensor, prompt_embeddings: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Projected taps, rung [N], prompt embedding [N, E] -> (feature map [N, width, g, g'], condition [N, D])."""
        maps = []
        for i, tap in enumerate(self.config.taps):
            mean, std = getattr(self, f"mean_{i}"), getattr(self, f"std_{i}")  # [P]
            maps.append((projected[tap].float() - mean[:, None, None]) / std[:, None, None])
        condition = self.rung_embedding(sinusoid(rung, 16))
        if self.config.prompt_width:
            if prompt_embeddings is None:
                raise UsageError("this probe reads the prompt embedding, and the backbone gave none")
            condition = condition + self.prompt_embedding(prompt_embeddings.float())
        return self.encoder(maps, condition), condition

    def predict(self, encoded: Tensor, condition: Tensor, head: str) -> Tensor:
        """Head's output: features [N, *shape], or the reward [N] of a scalar head."""
        index, row = self._row(head)
        if row.kind == "features" and len(row.shape) == 3:
            out: Tensor = self.heads[module_name(head)](encoded)
            if out.shape[2:] != row.shape[1:]:
                out = F.interpolate(out, size=row.shape[1:], mode="bilinear", antialias=True)
        else:
            pooled = torch.cat([encoded.mean((2, 3)), encoded.amax((2, 3)), condition], 1)
            out = self.heads[module_name(head)](pooled)
            if row.kind == "scalar":
                return out[:, 0]
            out = out.unflatten(1, row.shape)
        mean, std = self._feature_units(index, out.ndim)
        return out * std + mean

    def in_units(self, features: Tensor, head: str) -> Tensor:
        """Features [N, *shape] in units of each one's spread over the training set: what distillation compares."""
        mean, std = self._feature_units(self._row(head)[0], features.ndim)
        return (features - mean) / std

    def _row(self, head: str) -> tuple[int, Head]:
        return next((i, row) for i, row in enumerate(self.config.heads) if row.evaluator == head)

    def _feature_units(self, index: int, ndim: int) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (ndim - 2))
        return getattr(self, f"feature_mean_{index}").view(shape), getattr(self, f"feature_std_{index}").view(shape)

    def encode_stage(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """`encode` of a stage's candidates; maps that it does not name a basis of are projected first."""
        device = next(self.parameters()).device
        maps = {tap: stage.maps[tap].to(device) for tap in self.config.taps}
        maps |= self.project({tap: whole for tap, whole in maps.items() if tap not in stage.bases})
        text = stage.prompt_embeddings
        rungs = torch.full((len(stage.candidates),), float(stage.rung), device=device)
        return self.encode(maps, rungs, None if text is None else text.to(device))

    def formula(self, head: str) -> Evaluator | None:
        """The evaluator whose formula scores predicted features, loaded once; None for a scalar head."""
        if self._row(head)[1].kind == "scalar":
            return None
        from probeselect.evaluators.table import load_evaluator

        if head not in self.evaluators:
            self.evaluators[head] = load_evaluator(head, device=next(self.parameters()).device)
        return self.evaluators[head]

    def check_fits(self, other: Description) -> None:
        """Refuse a backbone, or data of one, that the probe was not made for, saying what differs."""
        for name in Description.__struct_fields__:
            mine, theirs = getattr(self.config, name), getattr(other, name)
            if mine != theirs:
                raise UsageError(f"scorer: the probe was made for {name} {mine!r}, this backbone has {theirs!r}")

    def check_rung(self, rung: float) -> None:
        """Refuse a rung outside of those that the probe was trained at; between two of them it interpolates."""
        first, last = min(self.config.rungs), max(self.config.rungs)
        if not first - RUNG_TOLERANCE <= rung <= last + RUNG_TOLERANCE:
            raise UsageError(f"rungs: the probe was trained from {first:g} to {last:g}, not for {rung:g}")
