"""The report's pictures, as SVG for light and for dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2f6fb0", "#d1742b", "#3f8f4f", "#a24fa0", "#b8433f", "#7a7a2a")
GREY = "#8a8f98"
MOST_PICTURES = 10  # as much compute as so many finished ones is drawn
INK = {"light": "#1c1e22", "dark": "#e6e8eb"}
Report = Mapping[str, Any]
Draw = Callable[[Axes, Report], None]


@dataclass(frozen=True)
class Chart:
    """One picture: its title, what it shows in a sentence, and its SVG by colour scheme."""

    title: str
    caption: str
    svg: Mapping[str, str]


def charts(report: Report) -> list[Chart]:
    """Every picture of a report of `jobs.evaluate`."""
    return [
        Chart(
            "Reward against compute",
            "Mean reward of what is kept. Above the grey line, which is best-of-n, the schedule saves compute.",
            _both(_reward_against_compute, report, (7.2, 4.4)),
        ),
        Chart(
            "Choosing within prompts, by rung",
            "Spearman within prompts with its 95 % interval; dashed: pooled, as the literature reports it.",
            _both(_spearman_by_rung, report, (7.2, 3.6)),
        ),
        Chart(
            "Share of the best-of-N gain, by rung",
            "0: as good as choosing at random; 1: the best candidate of every prompt. 95 % intervals over prompts.",
            _both(_gain_by_rung, report, (7.2, 3.6)),
        ),
    ]


def _both(draw: Draw, report: Report, size: tuple[float, float]) -> dict[str, str]:
    return {scheme: _svg(draw, report, size, ink) for scheme, ink in INK.items()}


def _svg(draw: Draw, report: Report, size: tuple[float, float], ink: str) -> str:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {**dict.fromkeys(names, ink), "svg.hashsalt": "probeselect", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, report)
        axes.legend(frameon=False, fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def scorers_of(report: Report) -> list[str]:
    """Names of the scorers, in the order of the report."""
    return list(dict.fromkeys(row["scorer"] for row in report["choosing"]))


def _rows(report: Report, scorer: str, starts: str = "", ends: str = "") -> list[Mapping[str, Any]]:
    found = (row for row in report["compute"] if row["scorer"] == scorer)
    return [row for row in found if row["schedule"].startswith(starts) and row["schedule"].endswith(ends)]


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], **style: Any) -> None:
    rows = sorted(rows, key=lambda row: row["rows"])
    x = [row["rows"] for row in rows]
    axes.plot(x, [row["reward"] for row in rows], **style)
    low, high = zip(*(row["reward_interval"] for row in rows), strict=True)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _reward_against_compute(axes: Axes, report: Report) -> None:
    most = MOST_PICTURES * report["total_steps"]
    best = [row for row in _rows(report, "best of n") if row["rows"] <= most]
    _line(axes, best, color=GREY, linewidth=2, marker="o", markersize=4, label="best of n")
    for colour, scorer in zip(COLOURS, scorers_of(report), strict=False):
        single = [row for row in _rows(report, scorer, ends="-> 1 at 20%") if row["rows"] <= most]
        _line_if(axes, single, color=colour, marker="o", markersize=4,
                 label=f"{scorer}: n -> 1 at 20 %")  # fmt: skip
        cuts = [row for row in _rows(report, scorer, starts="5 -> 1 at")]
        _line_if(axes, cuts, color=colour, linestyle=":", label=f"{scorer}: 5 -> 1 at each step")
        for row in _rows(report, scorer, starts="8 -> 4 -> 2"):
            axes.plot(row["rows"], row["reward"], marker="*", markersize=11, color=colour, linestyle="",
                      label=f"{scorer}: 8 -> 4 -> 2")  # fmt: skip
    oracle = [row for row in _rows(report, "oracle") if row["rows"] <= most]
    _line_if(axes, oracle, color=GREY, linestyle="--", label="oracle: n -> 1 at 20 %")
    axes.set_xlabel("denoiser rows a prompt")
    axes.set_ylabel(f"mean {report['evaluator']} of what is kept")
    axes.set_xlim(0, most)


def _line_if(axes: Axes, rows: Sequence[Mapping[str, Any]], **style: Any) -> None:
    if rows:
        _line(axes, rows, **style)


def _spearman_by_rung(axes: Axes, report: Report) -> None:
    for colour, scorer in zip(COLOURS, scorers_of(report), strict=False):
        rows = sorted((row for row in report["choosing"] if row["scorer"] == scorer), key=lambda row: row["rung"])
        x = [row["rung"] for row in rows]
        _with_interval(axes, x, rows, "spearman", colour, scorer)
        axes.plot(x, [row["pooled_spearman"] for row in rows], color=colour, linestyle="--", linewidth=1)
    constant = report["rewards"]["pooled_of_a_constant"]
    axes.axhline(constant, color=GREY, linestyle="--", linewidth=1, label="pooled, of a constant for every prompt")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("rung: completed steps / all")
    axes.set_ylabel("Spearman")


def _gain_by_rung(axes: Axes, report: Report) -> None:
    for colour, scorer in zip(COLOURS, scorers_of(report), strict=False):
        rows = sorted((row for row in report["choosing"] if row["scorer"] == scorer), key=lambda row: row["rung"])
        _with_interval(axes, [row["rung"] for row in rows], rows, "gain_share", colour, scorer)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("rung: completed steps / all")
    axes.set_ylabel("share of the gain")


def _with_interval(
    axes: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], name: str, colour: str, label: str
) -> None:
    axes.plot(x, [row[name] for row in rows], color=colour, marker="o", markersize=4, label=label)
    low, high = zip(*(row[f"{name}_interval"] for row in rows), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
