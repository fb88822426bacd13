"""The model card of a trained probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probeselect.core.metrics import Figures
from probeselect.data.config import DatasetConfig
from probeselect.probe.checks import Fused, Leak
from probeselect.probe.config import ProbeConfig


@dataclass(frozen=True, kw_only=True)
class HeadRow(Figures):
    """How well one head chooses at one rung."""

    evaluator: str
    rung: float


@dataclass(frozen=True)
class TrainReport:
    """What a training says of its probe: report.json beside the weights."""

    epochs: int
    prompts: Mapping[str, int]  # in each part: train, val, test
    figures: Mapping[str, Sequence[HeadRow]]  # on the val and test prompts
    leaks: Sequence[Leak]
    fusions: Sequence[Fused]  # with the preview's reward
    samples_per_second: float
    peak_memory_mib: int


def card(config: ProbeConfig, data: DatasetConfig, report: TrainReport, command: str) -> str:
    """What the probe reads and predicts, its figures, the data, the command."""
    prompts, taps = report.prompts, ", ".join(f"`{tap}`" for tap in config.taps)
    evaluators = ", ".join(f"`{head.evaluator}` ({head.kind})" for head in config.heads)
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: probeselect",
        "tags: [probeselect, text-to-image]",
        "---",
        f"# A probe for {config.denoiser}",
        "",
        f"Predicts {evaluators} of the finished picture from an unfinished one.",
        "",
        f"- Reads {taps} at {', '.join(f'{rung:g}' for rung in config.rungs)} of the steps",
        f"- Backbone: `{data.model}` ({config.denoiser} {config.architecture}), {data.scheduler['class']}",
        f"- {prompts['train']} prompts x {data.n} candidates to train on, {prompts['val']} to choose the epoch by, "
        f"{prompts.get('test', 0)} that nothing was chosen by",
        f"- Made by `{command}` in {report.epochs} epochs",
        "",
    ]
    for part, rows in report.figures.items():
        lines += [
            f"## On {part} prompts",
            "",
            "| evaluator | rung | Spearman within prompts | pooled | share of the gain | regret |",
            "|---|---|---|---|---|---|",
            *map(_row, rows),
            "",
        ]
    lines += ["95 % intervals over prompts. The gain is that of the best of N over the mean.", "", "## Leaks", ""]
    lines += map(leak_line, report.leaks)
    if report.fusions:
        lines += ["", "## With the preview's reward", "", *map(fusion_line, report.fusions)]
    return "\n".join(lines) + "\n"


def _row(row: HeadRow) -> str:
    (a, b), (c, d) = row.spearman_interval, row.gain_share_interval
    return (
        f"| {row.evaluator} | {row.rung:g} | {row.spearman:.3f} [{a:.3f}, {b:.3f}] "
        f"| {row.pooled_spearman:.2f} | {row.gain_share:.0%} [{c:.0%}, {d:.0%}] | {row.regret:.3g} |"
    )


def leak_line(leak: Leak) -> str:
    """One check in words; loud where something leaks."""
    found = f"- {leak.check}, {leak.evaluator}: Spearman within prompts {leak.spearman:+.3f} "
    found += f"+- {leak.standard_error:.3f}, pooled {leak.pooled_spearman:.2f}"
    return found + (" **is not zero: something leaks, do not trust the figures**" if leak.leak else "")


def fusion_line(fusion: Fused) -> str:
    """Whether the preview's reward, beside the probe's, is worth its decoding."""
    low, high = fusion.lead_interval
    helps = "helps" if low > 0 else "harms" if high < 0 else "makes no difference that these prompts show"
    return (
        f"- {fusion.evaluator} at {fusion.rung:g}: Spearman {fusion.fused:.3f} fused, {fusion.probe:.3f} the probe, "
        f"{fusion.preview:.3f} the preview; {helps} ({fusion.lead:+.3f} [{low:.3f}, {high:.3f}] over the better one)"
    )
