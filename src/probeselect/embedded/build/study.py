"""Trains the candidates for the shipped probe, chooses on val prompts, measures once on test prompts."""

import json
from pathlib import Path
from typing import Any

import torch

from probeselect.backbones.loading import load_backbone
from probeselect.data.shards import Shard
from probeselect.embedded.build.probe import (
    EVALUATOR,
    GUIDANCE,
    RUNGS,
    STEPS,
    TAPS,
    agreement,
    compare,
    predictions,
    text_only,
    train_probe,
)
from probeselect.evaluators.scene import SceneCheck
from probeselect.probe.files import save_probe
from probeselect.probe.network import Probe
from probeselect.probe.training import TrainingSettings, load_table

CHOSEN_AT = 0.2  # the rung that decides
DISTILLED = TrainingSettings()
PAPER = TrainingSettings(distillation_weight=0.0, listwise_weight=1.0, contrast_weight=10.0)  # lambda = 10
VARIANTS: dict[str, tuple[str, tuple[str, ...], TrainingSettings]] = {
    "distilled, activations + x0": ("features", TAPS, DISTILLED),
    "distilled, x0 only": ("features", ("x0",), DISTILLED),
    "scalar, the paper's two losses": ("scalar", TAPS, PAPER),
}


def choose_and_ship(work: Path, out: Path) -> None:
    backbone = load_backbone(str(out / "backbone"), dtype="fp32", device="cpu")
    evaluator = SceneCheck(out / "scene-check")
    train, val = (load_table(work / f"groups-{split}", EVALUATOR) for split in ("train", "val"))
    probes: dict[str, Probe] = {}
    study: list[dict[str, Any]] = []
    for name, (kind, taps, settings) in VARIANTS.items():
        probes[name], history = train_probe(train, val, backbone, evaluator, kind, taps, settings)
        study.append({"variant": name, **history[-1]})
    blind, _ = train_probe(text_only(train), text_only(val), backbone, evaluator, "features", TAPS, DISTILLED)
    best = max(study, key=lambda row: row[f"spearman@{CHOSEN_AT:g}"] + row[f"gain@{CHOSEN_AT:g}"])["variant"]
    test = load_table(work / "groups-test", EVALUATOR)
    measured = {f"{rung:g}": _compare_at(test, rung, probes, blind, evaluator) for rung in RUNGS}
    report = {"chosen": best, "prompts": len(train.prompts), "study_on_val": study, "test": measured}
    report["agreement"] = agreement(test)
    (work / "probe-report.json").write_text(json.dumps(report, indent=1) + "\n")
    save_probe(probes[best], out / "probe", card(report))
    print(card(report), flush=True)


def _compare_at(
    table: Shard, rung: float, probes: dict[str, Probe], blind: Probe, evaluator: SceneCheck
) -> dict[str, Any]:
    scorers = {name: predictions(probe, table, evaluator, rung) for name, probe in probes.items()}
    scorers["text only"] = predictions(blind, text_only(table), evaluator, rung)
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
        f"Predicts the `{EVALUATOR}` reward of the finished picture from unfinished candidates ({best}). Trained on",
        f"{report['prompts']} prompts x 5 seeds of the train split, {STEPS} steps, guidance {GUIDANCE:g}; chosen among",
        "the variants below on val prompts; the test prompts were used once, for this page.",
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
