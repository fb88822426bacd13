"""A new probe for a table: its configuration, projections and standardisation, before any training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probeselect.core.description import Description
from probeselect.core.files import checked
from probeselect.data.table import Table
from probeselect.probe.config import Head, ProbeConfig
from probeselect.probe.files import Probe

STATISTICS_GROUPS = 256  # of which the standardisation is measured
STATISTICS_AT_ONCE = 8


def new_probe(
    table: Table,
    heads: Sequence[Head],
    backbone: str,
    made_for: Description,
    rungs: Sequence[float],
    projections: Mapping[str, Tensor],
    width: int = 48,
) -> Probe:
    """A probe for the maps of `table`, standardised by the statistics of some of its groups.

    backbone: its name, for people. made_for: what it is. projections: tap -> the basis [P, C] that its maps were
    collected with. Raises UsageError for what no configuration may hold.
    """
    shapes = {tap: table.tensors[f"map/{tap}/{rungs[0]:g}"].shape for tap in projections}  # [G, N, P, H, W]
    config = ProbeConfig(
        backbone=backbone,
        denoiser=made_for.denoiser,
        architecture=made_for.architecture,
        latent_channels=made_for.latent_channels,
        taps=tuple(projections),
        tap_channels=tuple(basis.shape[1] for basis in projections.values()),
        projected_channels=tuple(basis.shape[0] for basis in projections.values()),
        rungs=tuple(float(r) for r in rungs),
        heads=tuple(heads),
        prompt_width=table.tensors["prompt"].shape[1] if "prompt" in table.tensors else 0,
        grid=max(min(shape[-2:]) for shape in shapes.values()),
        width=width,
    )
    probe = Probe(checked(config, "probe"), [basis.to(torch.float32, copy=True) for basis in projections.values()])
    some = torch.arange(0, len(table), max(1, len(table) // STATISTICS_GROUPS))
    for i, tap in enumerate(config.taps):
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
