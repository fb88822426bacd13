"""Stage `probe`: the best variant of the study ships, with its fusion; all are measured once on the test prompts."""

import json
from pathlib import Path
from typing import Any

from msgspec import structs

from probeselect.core.stage import Scorer
from probeselect.data.dataset import scores_of
from probeselect.data.sealed import write_file
from probeselect.data.table import Table
from probeselect.embedded import SHIPPED
from probeselect.probe.blind import shuffled_activations, without_activations
from probeselect.probe.checks import fuse, text_only_probe
from probeselect.probe.files import load_probe, save_probe
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.splits import write_seen
from probeselect.scorers.table import FusionScorer, PreviewScorer, RandomScorer
from research.embedded.groups import RUNGS, STEPS, load_groups, sampling
from research.embedded.measure import compare, lead
from research.embedded.study import FAMILIES, Bench, best_to_ship
from research.embedded.variants import Variant, variants

EVALUATOR = "scene-check"
DECIDES = 0.2  # the rung that the card compares at


def ship(work: Path, model: str) -> None:
    """Choose on val, fit the fusion on val, measure on test, write probe, card and report."""
    bench = Bench(work, model)
    chosen, found = best_to_ship(bench), variants(model)
    others = {"x0 alone": _named(found, "x0 alone"), "the paper's recipe": _named(found, "the paper's recipe")}
    for variant in others.values():
        bench.row(variant)  # trains it, where the study has not
    probe = load_probe(bench.probe_of(chosen))
    train, val = (bench.seen(table, chosen.maps) for table in (bench.train, bench.val))
    probe.config = structs.replace(probe.config, fusions=fuse(probe, val, val)[0])
    text_only = text_only_probe(probe, train, val, chosen.settings)
    test, _ = load_groups(work, model, "test")
    report: dict[str, Any] = {"model": model, "chosen": chosen.name, **_trained_on(bench, chosen), "test": {}}

    def scorer(probe: ProbeNetwork) -> ProbeScorer:
        return ProbeScorer(probe, EVALUATOR)

    preview = PreviewScorer(EVALUATOR)
    asked: dict[str, tuple[Scorer, Table]] = {
        "probe": (scorer(probe), bench.seen(test, chosen.maps)),
        **{name: (scorer(load_probe(bench.probe_of(v))), bench.seen(test, v.maps)) for name, v in others.items()},
        preview.name: (preview, test),
        "text only": (scorer(text_only), bench.seen(without_activations(test), chosen.maps)),
        "shuffled": (scorer(probe), bench.seen(shuffled_activations(test), chosen.maps)),
        "random": (RandomScorer(), test),
        "fusion of probe and preview": (FusionScorer(scorer(probe), preview), bench.seen(test, chosen.maps)),
    }
    for rung in RUNGS:
        scores = {name: scores_of(each, table, rung) for name, (each, table) in asked.items()}
        report["test"][f"{rung:g}"] = compare(test, EVALUATOR, scores)
        rivals = {"two finished pictures": None, **{k: v for k, v in scores.items() if k != "probe"}}
        rewards = test.tensors[f"reward/{EVALUATOR}"]
        report.setdefault("lead", {})[f"{rung:g}"] = {k: lead(scores["probe"], v, rewards) for k, v in rivals.items()}
    write_file(work / f"probe-report-{model}.json", (json.dumps(report, indent=1) + "\n").encode())
    save_probe(probe, SHIPPED[model].probe, card(report))
    write_seen(SHIPPED[model].probe, bench.train.prompts)
    print(card(report), flush=True)


def _named(found: list[Variant], start: str) -> Variant:
    return next(variant for variant in found if variant.name.startswith(start))


def _trained_on(bench: Bench, variant: Variant) -> dict[str, Any]:
    row = bench.row(variant)
    return {name: row[name] for name in ("prompts", "epochs", "parameters", "minutes")}


def card(report: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained and chosen, and its figures on test prompts."""
    model, test = report["model"], report["test"]
    at, guidance = test[f"{DECIDES:g}"], sampling(model)["guidance_scale"]
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: probeselect",
        "---",
        f"# The probe of `{model}` ({FAMILIES[model]})",
        "",
        f"Predicts the `{EVALUATOR}` reward of the finished picture from unfinished candidates;",
        f"{report['parameters'] / 1e6:.2f} M parameters. Trained on {report['prompts']} prompts x 5 seeds of the train",
        f"split ({STEPS} steps, guidance {guidance:g}), {report['epochs']} epochs, {report['minutes']:.0f} minutes. Of",
        f"the ways to make a probe that may ship this one ({report['chosen']}) is the best on val prompts, all rungs",
        "together. Nothing was chosen on test prompts; the fusion with the preview's reward is fitted on val prompts.",
        f"Made in the repository by `python -m research.embedded collect study probe --model {model}`.",
        "",
        f"## Test prompts ({at['all']['groups']} x 5 seeds)",
        "",
        f"Mean reward {at['all']['mean']:.3f}, best of five {at['all']['best']:.3f}; whole caption met "
        f"{at['all']['pass_rate']:.0%} of single pictures, {at['all']['pass_rate_of_best']:.0%} of best-of-five.",
        "95 % intervals by bootstrap over prompts. `shuffled` is the probe told about another candidate of the prompt:",
        "at worst a little below zero.",
    ]
    for rung, rows in test.items():
        lines += [
            "",
            f"### At {float(rung):.0%} of the steps",
            "",
            "| scorer | Spearman within prompts | pooled | top-1 regret | share of the best-of-5 gain | caption met |",
            "|---|---|---|---|---|---|",
            *(_line(name, row) for name, row in rows.items() if name != "all"),
        ]
    lines += ["", "## The probe's share of the gain less that of others, paired by prompt", ""]
    lines += ["| | " + " | ".join(f"at {float(rung):.0%}" for rung in test) + " |", "|---|" + "---|" * len(test)]
    for name in report["lead"][f"{DECIDES:g}"]:
        lines.append(f"| {name} | " + " | ".join(_points(report["lead"][rung][name]) for rung in test) + " |")
    return "\n".join(lines) + "\n"


def _points(found: Any) -> str:
    mean, (low, high) = found
    return f"{100 * mean:+.0f} points [{100 * low:.0f}, {100 * high:.0f}]"


def _line(name: str, row: dict[str, Any]) -> str:
    low, high = row["gain_share_interval"]
    share = f"{row['gain_share']:.0%} [{low:.0%}, {high:.0%}]"
    if "spearman" not in row:
        return f"| {name} | - | - | {row['regret']:.3f} | {share} | {row['pass_rate_of_chosen']:.0%} |"
    (a, b), (c, d) = row["spearman_interval"], row["regret_interval"]
    within, regret = f"{row['spearman']:.3f} [{a:.3f}, {b:.3f}]", f"{row['regret']:.3f} [{c:.3f}, {d:.3f}]"
    cells = (name, within, f"{row['pooled_spearman']:.2f}", regret, share, f"{row['pass_rate_of_chosen']:.0%}")
    return "| " + " | ".join(cells) + " |"
