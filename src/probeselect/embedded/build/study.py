"""Trains the candidates for the shipped probe, chooses on val prompts, measures once on test prompts."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.data.table import Table
from probeselect.embedded.build.probe import (
    EVALUATOR,
    GUIDANCE,
    RUNGS,
    STEPS,
    TAPS,
    compare,
    lead,
    load_groups,
    predictions,
    train_probe,
)
from probeselect.embedded.build.state import has_quick_bf16
from probeselect.evaluators.scene import SceneCheck
from probeselect.probe.files import load_probe, save_probe
from probeselect.probe.network import Probe
from probeselect.probe.objective import Weights
from probeselect.probe.predicting import without_activations
from probeselect.probe.training import TrainingSettings

CHOSEN_AT = 0.2  # the rung that decides
UP_3 = "up_blocks.2.resnets.1"  # the paper's tap


@dataclass(frozen=True)
class Variant:
    """One way to make a probe."""

    name: str
    kind: Literal["features", "scalar"]
    taps: tuple[str, ...]
    settings: TrainingSettings


BF16 = has_quick_bf16()
DISTILLED = TrainingSettings(bf16=BF16)
PAPER = TrainingSettings(weights=Weights(ranking=1.0, contrast=10.0, distillation=0.0), bf16=BF16)  # lambda = 10
VARIANTS = (
    Variant("distilled, activations + x0", "features", TAPS, DISTILLED),
    Variant("distilled, x0 only", "features", ("x0",), DISTILLED),
    Variant("scalar, the paper's tap and losses", "scalar", (UP_3,), PAPER),
)
BLIND = Variant(
    "text only", "features", TAPS, replace(DISTILLED, epochs=2)
)  # constant within a prompt, whatever it learns


def choose_and_ship(work: Path, out: Path) -> None:
    """Train every variant, choose on val prompts, ship; then measure all of them once on the test prompts."""
    backbone = load_backbone(str(out / "backbone"), dtype="fp32", device="cpu")
    evaluator = SceneCheck(out / "scene-check")
    (train, bases), (val, _) = (load_groups(work, split) for split in ("train", "val"))
    trained = {v.name: _trained(work, v, train, val, bases, backbone, evaluator) for v in VARIANTS}
    blind_tables = without_activations(train), without_activations(val)
    blind, _ = _trained(work, BLIND, *blind_tables, bases, backbone, evaluator)
    study = [{"variant": name, **reached} for name, (_, reached) in trained.items()]
    best = max(study, key=lambda row: row[f"spearman@{CHOSEN_AT:g}"] + row[f"gain@{CHOSEN_AT:g}"])["variant"]
    test, _ = load_groups(work, "test")
    probes = {name: probe for name, (probe, _) in trained.items()}
    measured = {f"{rung:g}": _compare_at(test, rung, probes, blind, evaluator) for rung in RUNGS}
    report = {"chosen": best, "prompts": len(train.prompts), "study_on_val": study, "test": measured}
    chosen = predictions(probes[best], test, evaluator, CHOSEN_AT)
    rewards, preview = (
        test.tensors[f"{name}"] for name in (f"reward/{EVALUATOR}", f"preview/{EVALUATOR}/{CHOSEN_AT:g}")
    )
    others = {"two finished pictures": None, f"preview:{EVALUATOR}": preview}
    others |= {v.name: predictions(probes[v.name], test, evaluator, CHOSEN_AT) for v in VARIANTS if v.name != best}
    report["lead"] = {name: lead(chosen, other, rewards) for name, other in others.items()}
    (work / "probe-report.json").write_text(json.dumps(report, indent=1) + "\n")
    save_probe(probes[best], out / "probe", card(report))
    print(card(report), flush=True)


def _trained(
    work: Path,
    variant: Variant,
    train: Table,
    val: Table,
    bases: dict[str, Tensor],
    backbone: Backbone,
    evaluator: SceneCheck,
) -> tuple[Probe, dict[str, Any]]:
    """The probe of a variant as it would ship, and what it reached on val; trained once, then read from `work`."""
    folder = work / "probes" / re.sub(r"\W+", "-", variant.name)
    reached = folder / "reached.json"
    if not reached.exists():
        read = {tap: bases[tap] for tap in variant.taps}
        probe, history = train_probe(train, val, read, backbone, evaluator, variant.kind, variant.settings)
        save_probe(probe, folder)
        reached.write_text(json.dumps(history[-1]) + "\n")
    return load_probe(folder), json.loads(reached.read_text())


def _compare_at(
    table: Table, rung: float, probes: dict[str, Probe], blind: Probe, evaluator: SceneCheck
) -> dict[str, Any]:
    scorers = {name: predictions(probe, table, evaluator, rung) for name, probe in probes.items()}
    scorers["text only"] = predictions(blind, without_activations(table), evaluator, rung)
    scorers[f"preview:{EVALUATOR}"] = table.tensors[f"preview/{EVALUATOR}/{rung:g}"]
    n = table.tensors["seeds"].shape
    scorers["random"] = torch.rand(n, generator=torch.Generator().manual_seed(0))
    return compare(table, scorers)


def card(report: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained and chosen, and its figures on test prompts."""
    best, test = report["chosen"], report["test"]
    at = test[f"{CHOSEN_AT:g}"]
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: probeselect",
        "---",
        "# The probe of the embedded backbone",
        "",
        f"Predicts the `{EVALUATOR}` reward of the finished picture from unfinished candidates",
        f"({best}). Trained on {report['prompts']} prompts x 5 seeds of the train split,",
        f"{STEPS} steps, guidance {GUIDANCE:g}; chosen among the variants below on val prompts; nothing was chosen",
        "on the test prompts.",
        "Made by `python -m probeselect.embedded.build collect probe`.",
        "",
        f"## Test prompts ({at['all']['groups']} x 5 seeds)",
        "",
        f"Mean reward {at['all']['mean']:.3f}, best of five {at['all']['best']:.3f}; whole caption met "
        f"{at['all']['pass_rate']:.0%} of single pictures, {at['all']['pass_rate_of_best']:.0%} of best-of-five.",
        "95 % intervals by bootstrap over prompts.",
    ]
    for rung, rows in test.items():
        lines += [
            "",
            f"### At {float(rung):.0%} of the steps",
            "",
            "| scorer | within-prompt Spearman | pooled | share of the best-of-5 gain | caption met by the chosen |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(name, row) for name, row in rows.items() if name != "all"]
    lines += ["", f"Of the gain at {CHOSEN_AT:.0%}, more than the others take, paired by prompt:", ""]
    for name, (mean, (low, high)) in report["lead"].items():
        lines.append(f"- {100 * mean:+.0f} points [{100 * low:.0f}, {100 * high:.0f}] over {name}")
    lines += [
        "",
        "## Variants on val prompts, at 20 %",
        "",
        "| variant | Spearman | gain share |",
        "|---|---|---|",
    ]
    lines += [f"| {r['variant']} | {r['spearman@0.2']:.3f} | {r['gain@0.2']:.0%} |" for r in report["study_on_val"]]
    return "\n".join(lines) + "\n"


def _row(name: str, row: dict[str, Any]) -> str:
    low, high = row["gain_share_interval"]
    share = f"{row['gain_share']:.0%} [{low:.0%}, {high:.0%}]"
    if "spearman" not in row:
        return f"| {name} | - | - | {share} | {row['pass_rate_of_chosen']:.0%} |"
    a, b = row["spearman_interval"]
    within = f"{row['spearman']:.3f} [{a:.3f}, {b:.3f}]"
    return f"| {name} | {within} | {row['pooled_spearman']:.2f} | {share} | {row['pass_rate_of_chosen']:.0%} |"
