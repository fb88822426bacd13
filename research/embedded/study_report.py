"""The study as a table and a picture for the docs."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probeselect.collect.summary import BAR, INK
from probeselect.data.sealed import write_file

RUNG = "0.2"
Row = dict[str, Any]


def write_study(rows: Sequence[Row], noise: Mapping[str, Row], docs: Path, model: str, family: str) -> None:
    """Write MODEL.json, MODEL.md and MODEL.png."""
    questions = list(dict.fromkeys(row["question"] for row in rows))
    rows = sorted(rows, key=lambda row: questions.index(row["question"]))
    docs.mkdir(parents=True, exist_ok=True)
    content = {"variants": rows, "evaluator noise": noise}
    write_file(docs / f"{model}.json", (json.dumps(content, indent=1) + "\n").encode())
    write_file(docs / f"{model}.md", (_table(rows, model, family) + _noise(noise)).encode())
    write_file(docs / f"{model}.png", _picture(rows, family))


def _table(rows: Sequence[Row], model: str, family: str) -> str:
    first = next(iter(rows[0]["val"].values()))[RUNG]
    lines = [
        f"# What makes a probe good: {model} ({family})",
        "",
        f"On {first['prompts']} val prompts x 5 seeds; 95 % intervals over prompts; made by",
        f"`python -m research.embedded study --model {model}`. Base: all taps through a random projection to",
        f"48 channels, {rows[0]['prompts']} prompts, {rows[0]['epochs']} epochs, a head for features, distillation +",
        "0.3 Eq. 5 + 0.02 Eq. 6, width 48.",
        "Each row differs from it in one thing, those to ship and the paper's recipes in several. Spearman is within",
        "prompts but for the pooled column.",
        "",
        f"![the same at {float(RUNG):.0%} of the steps]({model}.png)",
        "",
        "| question | variant | prompts | Spearman at 0.1 | at 0.2 | at 0.4 | pooled at 0.2 | share of the gain at 0.2 "
        "| KB a candidate and rung | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row, name) for row in rows for name in row["val"])]) + "\n"


def _noise(noise: Mapping[str, Row]) -> str:
    lines = [
        "",
        "## How far the evaluators agree, on the finished pictures",
        "",
        "| | Spearman within prompts | pooled | share of the gain |",
        "|---|---|---|---|",
    ]
    for name, found in noise.items():
        low, high = found["gain_share_interval"]
        gain = f"{found['gain_share']:.0%} [{low:.0%}, {high:.0%}]"
        lines.append(f"| {name} | {_with_interval(found, 'spearman')} | {found['pooled_spearman']:.2f} | {gain} |")
    return "\n".join(lines) + "\n"


def _line(row: Row, evaluator: str) -> str:
    at = row["val"][evaluator]
    name = row["name"] if len(row["val"]) == 1 else f"{row['name']}: {evaluator}"
    spearman = [_with_interval(at[rung], "spearman") if rung in at else "" for rung in ("0.1", RUNG, "0.4")]
    low, high = at[RUNG]["gain_share_interval"]
    gain = f"{at[RUNG]['gain_share']:.0%} [{low:.0%}, {high:.0%}]"
    cells = [row["question"], name, str(row["prompts"]), *spearman, f"{at[RUNG]['pooled_spearman']:.2f}", gain]
    return "| " + " | ".join([*cells, f"{row['bytes'] / 1000:.1f}", f"{row['minutes']:.1f}"]) + " |"


def _with_interval(figures: Row, name: str) -> str:
    low, high = figures[f"{name}_interval"]
    return f"{figures[name]:.2f} [{low:.2f}, {high:.2f}]"


def _picture(rows: Sequence[Row], family: str) -> bytes:
    questions = [q for q in dict.fromkeys(row["question"] for row in rows) if q not in ("base", "prompts")]
    bars = {q: [rows[0], *(row for row in rows if row["question"] == q)] for q in questions}
    heights = [len(found) + 1 for found in bars.values()]
    figure = Figure(figsize=(13, 3.6 + 0.24 * sum(heights)), layout="constrained")
    top, rest = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.4, 0.24 * sum(heights)))[:, 0]
    curve, learning = top.subplots(1, 2)
    _prompts_curve(curve, rows)
    _learning(learning, rows[0])
    panels = rest.subplots(len(bars), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0]
    for panel, (question, found) in zip(panels, bars.items(), strict=True):
        _bars(panel, question, found)
    panels[-1].set_xlabel("Spearman within val prompts at 0.2 (dotted: base)", fontsize=8)
    figure.suptitle(family, fontsize=11, color=INK)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100, metadata={"Software": None})
    return out.getvalue()


def _bars(panel: Axes, question: str, rows: Sequence[Row]) -> None:
    names, values, errors = [], [], []
    for row in rows:
        for evaluator, at in row["val"].items():
            found = at[RUNG]
            names.append(row["name"] if len(row["val"]) == 1 else f"{row['name']}: {evaluator}")
            values.append(found["spearman"])
            low, high = found["spearman_interval"]
            errors.append((found["spearman"] - low, high - found["spearman"]))
    lines: dict[str, Any] = {"xerr": list(zip(*errors, strict=True)), "ecolor": INK, "error_kw": {"lw": 1}}
    panel.barh(names, values, color=BAR, height=0.65, **lines)
    panel.axvline(values[0], color=INK, linestyle=":", linewidth=1)
    panel.invert_yaxis()
    panel.set_title(question, fontsize=9, loc="left")
    _plain(panel)


def _prompts_curve(axes: Axes, rows: Sequence[Row]) -> None:
    points = sorted((row for row in rows if row["question"] in ("prompts", "base")), key=lambda row: row["prompts"])
    for rung in ("0.1", RUNG, "0.4"):
        found = [next(iter(row["val"].values()))[rung] for row in points]
        x, y = [row["prompts"] for row in points], [f["spearman"] for f in found]
        axes.plot(x, y, marker="o", markersize=4, label=f"at {rung}")
        low, high = zip(*(f["spearman_interval"] for f in found), strict=True)
        axes.fill_between(x, low, high, alpha=0.15)
    axes.set_xscale("log")
    axes.set_xticks(x, [str(each) for each in x])
    axes.minorticks_off()
    axes.set_title("how many prompts does a probe need?", fontsize=9, loc="left")
    axes.set_xlabel("training prompts x 5 seeds", fontsize=8)
    axes.set_ylabel("Spearman within val prompts", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    _plain(axes)


def _learning(axes: Axes, base: Row) -> None:
    epochs = range(1, len(base["history"]) + 1)
    for key in (key for key in base["history"][0] if "@" in key):
        axes.plot(
            epochs,
            [line[key] for line in base["history"]],
            marker="o",
            markersize=4,
            label=f"Spearman at {key.split('@')[1]}",
        )
    for name, style in (("temperature", "--"), ("margin", ":")):
        axes.plot(epochs, [line[name] for line in base["annealing"]], style, color=INK, linewidth=1, label=name)
    axes.set_title("the base by epoch, with its annealing", fontsize=9, loc="left")
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_xticks(epochs)
    axes.legend(fontsize=8, frameon=False)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
