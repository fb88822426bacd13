"""The probe: taps at a rung -> predicted reward of the finished picture.

Knows maps, rungs and heads; does not know pipelines. Each tap goes through a fixed 1x1 projection (one basis for all
samples, stored with the weights) and fixed standardisation; a small U-shaped encoder, told the rung, mixes them.
A `scalar` head predicts the reward itself (the paper's probe); a `features` head predicts what the evaluator would
extract from the finished picture, which the evaluator's own formula then scores.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from probeselect.core.errors import UsageError
from probeselect.core.names import is_plain_name
from probeselect.probe.fusion import Fusion
from probeselect.probe.maps import orthonormal, project, sinusoid, to_grid

FORMAT = 1
RUNG_TOLERANCE = 0.026  # a rung in between: half a step of 20


@dataclass(frozen=True)
class Head:
    """What is predicted for one evaluator. `shape` is that of its features: (F, H, W) maps or a vector (D,)."""

    evaluator: str
    kind: Literal["scalar", "features"]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that must agree between a probe, a backbone and an evaluator; stored as config.json."""

    backbone: str  # name, for people
    denoiser: str  # class name
    architecture: str  # digest of the denoiser's configuration
    latent_channels: int
    taps: tuple[str, ...]
    tap_channels: tuple[int, ...]  # of the taps as they come
    projected_channels: tuple[int, ...]  # after the fixed projection
    rungs: tuple[float, ...]  # trained on
    heads: tuple[Head, ...]
    prompt_width: int = 0  # of the backbone's prompt embedding; 0: not read
    grid: int = 16  # height and width that maps are brought to; their aspect ratio is kept
    width: int = 32
    format: int = FORMAT
    fusions: tuple[Fusion, ...] = ()  # with the preview's reward
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def default_head(self) -> str:
        return self.heads[0].evaluator

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ProbeConfig":
        """Read config.json's content. Raises UsageError naming the field that is missing, unknown or wrong."""
        if fields.get("format") != FORMAT:
            raise UsageError(f"format = {fields.get('format')!r}: this version reads format {FORMAT}")
        known = set(cls.__dataclass_fields__)
        if surplus := sorted(set(fields) - known):
            raise UsageError(f"unknown field {surplus[0]!r}")
        try:
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"field missing or of a wrong type: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __post_init__(self) -> None:
        heads = (Head(**head) if isinstance(head, dict) else head for head in self.heads)  # as JSON gives them
        object.__setattr__(self, "heads", tuple(replace(head, shape=tuple(head.shape)) for head in heads))
        fusions = (Fusion(**fusion) if isinstance(fusion, dict) else fusion for fusion in self.fusions)
        object.__setattr__(self, "fusions", tuple(fusions))
        for name in ("taps", "tap_channels", "projected_channels", "rungs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.taps or not len(self.taps) == len(self.tap_channels) == len(self.projected_channels):
            raise UsageError("taps, tap_channels and projected_channels must be of one length, at least 1")
        named = [*(head.evaluator for head in self.heads), *(fusion.evaluator for fusion in self.fusions)]
        if bad := [name for name in named if not is_plain_name(name)]:
            raise UsageError(f"evaluator {bad[0]!r}: a file may hold a plain name only")
        if not self.heads or any(head.kind not in ("scalar", "features") for head in self.heads):
            raise UsageError("heads: at least one, each of kind 'scalar' or 'features'")
        sizes = (*self.tap_channels, *self.projected_channels, self.grid, self.width, self.latent_channels)
        sizes = (*sizes, *(side for head in self.heads for side in head.shape))
        if any(not isinstance(size, int) or not 0 < size <= 65536 for size in sizes):
            raise UsageError("channels, grid, width and shapes must be whole numbers from 1 to 65536")
        if not all(isinstance(r, float) and 0 < r < 1 for r in self.rungs) or not self.rungs:
            raise UsageError("rungs: fractions between 0 and 1, at least one")


class _Block(nn.Module):
    """Residual block whose second norm is shifted and scaled by the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels, affine=False)
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


class Probe(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="probeselect",
    license="apache-2.0",
    tags=["probeselect", "text-to-image"],
):
    """Network of a `ProbeConfig`. Load with `probeselect.probe.files.load_probe`, which refuses what does not fit."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_width = 2 * config.width
        for i, (channels, projected) in enumerate(zip(config.tap_channels, config.projected_channels, strict=True)):
            self.register_buffer(f"projection_{i}", orthonormal(projected, channels, seed=i))  # [P, C]
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
        self.heads = nn.ModuleDict({_key(head.evaluator): self._new_head(head) for head in config.heads})
        self.eval()

    def _new_head(self, head: Head) -> nn.Module:
        width = self.config.width
        if head.kind == "features" and len(head.shape) == 3:
            return nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, head.shape[0], 1))
        out = 1 if head.kind == "scalar" else math.prod(head.shape)
        inner = self.condition_width
        return nn.Sequential(nn.Linear(2 * width + inner, inner), nn.SiLU(), nn.Linear(inner, out))

    def project(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Taps as they come, [N, C, H, W] -> [N, P, H, W], what is stored for training: one basis for all samples."""
        return {tap: project(getattr(self, f"projection_{i}"), maps[tap]) for i, tap in enumerate(self.config.taps)}

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
            out: Tensor = self.heads[_key(head)](encoded)
            if out.shape[2:] != row.shape[1:]:
                out = F.interpolate(out, size=row.shape[1:], mode="bilinear", antialias=True)
        else:
            pooled = torch.cat([encoded.mean((2, 3)), encoded.amax((2, 3)), condition], 1)
            out = self.heads[_key(head)](pooled)
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

    def score(
        self,
        maps: dict[str, Tensor],
        rung: float,
        prompts: list[str],
        prompt_embeddings: Tensor | None,
        head: str,
    ) -> Tensor:
        """Predicted rewards [N] of candidates at `rung` from their taps as they come."""
        rungs = torch.full((len(prompts),), float(rung), device=next(self.parameters()).device)
        encoded, condition = self.encode(self.project(maps), rungs, prompt_embeddings)
        predicted = self.predict(encoded, condition, head)
        formula = self.formula(head)
        return predicted if formula is None else formula.score(predicted, prompts)

    def formula(self, head: str) -> Any:
        """The evaluator whose formula scores predicted features, loaded once; None for a scalar head."""
        if self._row(head)[1].kind == "scalar":
            return None
        from probeselect.evaluators.table import load_evaluator

        loaded = self.__dict__.setdefault("_evaluators", {})
        if head not in loaded:
            loaded[head] = load_evaluator(head, device=next(self.parameters()).device)
        return loaded[head]

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> "Probe":
        """What `Probe.from_pretrained` does: the checked loading of files.py, from a folder or the hub."""
        from probeselect.probe.files import load_probe

        return load_probe(model_id)

    def _save_pretrained(self, save_directory: Path) -> None:
        from probeselect.probe.files import save_probe

        save_probe(self, save_directory)

    def check_fits(self, backbone: dict[str, Any]) -> None:
        """Refuse a backbone (`Backbone.describe()`) that the probe was not made for, saying what differs."""
        for name in ("denoiser", "architecture", "latent_channels"):
            mine, theirs = getattr(self.config, name), backbone[name]
            if mine != theirs:
                raise UsageError(f"scorer: the probe was made for {name} {mine!r}, this backbone has {theirs!r}")

    def fusion(self, head: str, rung: float) -> Fusion:
        """The weights of a head and a preview near `rung`. Raises UsageError where none were fitted."""
        fitted = [f for f in self.config.fusions if f.evaluator == head and abs(f.rung - rung) <= RUNG_TOLERANCE]
        if not fitted:
            known = ", ".join(f"{f.evaluator} at {f.rung:g}" for f in self.config.fusions) or "none"
            raise UsageError(f"fusion: the probe has no weights for {head} at {rung:g}; it has: {known}")
        return min(fitted, key=lambda f: abs(f.rung - rung))

    def check_rung(self, rung: float) -> None:
        """Refuse a rung outside of those that the probe was trained at; between two of them it interpolates."""
        first, last = min(self.config.rungs), max(self.config.rungs)
        if not first - RUNG_TOLERANCE <= rung <= last + RUNG_TOLERANCE:
            raise UsageError(f"rungs: the probe was trained from {first:g} to {last:g}, not for {rung:g}")


def _key(evaluator: str) -> str:
    return evaluator.replace(".", "_")  # a module's name holds no dot
