"""The report's pictures, as SVG for light and for dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probeselect.evaluation.picture import Picture
from probeselect.evaluation.tables import BLIND, shown

COLOURS = ("#2f6fb0", "#d1742b", "#3f8f4f", "#a24fa0", "#b8433f", "#7a7a2a")
GREY = "#8a8f98"
FEW = 8  # candidates, up to which a sweep over n shows little
MOST_PICTURES = 10  # as much compute as so many finished ones is drawn
INK = {"light": "#1c1e22", "dark": "#e6e8eb"}
Report = Mapping[str, Any]
Draw = Callable[[Axes, Report], None]


def charts(report: Report) -> list[Picture]:
    """Every picture of a report of `jobs.evaluate`."""
    return [_picture(*row, report) for row in ROWS if row[0] != "candidates" or _most(report) > FEW]


def _picture(name: str, title: str, caption: str, draw: Draw, size: tuple[float, float], report: Report) -> Picture:
    schemes = {scheme: _drawn(draw, report, size, ink, "svg") for scheme, ink in INK.items()}
    return Picture(name, title, caption, "image/svg+xml", schemes, _drawn(draw, report, size, INK["light"], "png"))


def _drawn(draw: Draw, report: Report, size: tuple[float, float], ink: str, file_format: str) -> bytes:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {**dict.fromkeys(names, ink), "svg.hashsalt": "probeselect", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        if file_format == "svg":
            figure.patch.set_alpha(0)
            axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, report)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # never over what it explains
        out = io.BytesIO()
        about: dict[str, Any] = {"Date": None, "Creator": None} if file_format == "svg" else {"Software": None}
        figure.savefig(out, format=file_format, dpi=110, metadata=about)
    return out.getvalue()


def _most(report: Report) -> int:
    """The most candidates of a prompt that a schedule begins with."""
    return max((row["n"] for row in report["compute"]), default=0)


def scorers_of(report: Report) -> list[str]:
    """Names of the scorers, in the order of the report."""
    return list(dict.fromkeys(row["scorer"] for row in report["choosing"]))


def _seeing(report: Report) -> list[str]:
    """Names of the scorers that see something of a candidate."""
    return [name for name in scorers_of(report) if name not in BLIND]


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
    dearest = max(row["rows"] for row in report["compute"])
    most = min(MOST_PICTURES * report["total_steps"], dearest)
    best = [row for row in _rows(report, "best of n") if row["rows"] <= most]
    _line(axes, best, color=GREY, linewidth=2, marker="o", markersize=4, label="best of n")
    for colour, scorer in zip(COLOURS, _seeing(report), strict=False):
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
    axes.set_xlim(0, 1.02 * most)


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


def _candidates(axes: Axes, report: Report) -> None:
    """The sweep over n: what choosing among more candidates brings, whatever it costs."""
    _sweep(axes, _rows(report, "best of n"), color=GREY, label="best of n: all of them finished")
    for colour, scorer in zip(COLOURS, _seeing(report), strict=False):
        rows = _rows(report, scorer, ends="-> 1 at 20%")
        _sweep(axes, [row for row in rows if row["schedule"].count("->") == 1], color=colour, label=scorer)
    axes.set_xlabel("candidates n, of which one is kept at 20 %")
    axes.set_ylabel(f"mean {report['evaluator']} of what is kept")


def _sweep(axes: Axes, rows: Sequence[Mapping[str, Any]], **style: Any) -> None:
    if rows:
        rows = sorted(rows, key=lambda row: row["n"])
        axes.plot([row["n"] for row in rows], [row["reward"] for row in rows], marker="o", markersize=3, **style)
        low, high = zip(*(row["reward_interval"] for row in rows), strict=True)
        axes.fill_between([row["n"] for row in rows], low, high, color=style["color"], alpha=0.12, linewidth=0)


def _calibration(axes: Axes, report: Report) -> None:
    ends = []
    for colour, row in zip(COLOURS, report["calibration"], strict=False):
        if len(row["score"]) > 1 and row["scorer"] not in BLIND:
            axes.plot(row["score"], row["reward"], color=colour, marker="o", markersize=4, label=row["scorer"])
            axes.fill_between(row["score"], row["low"], row["high"], color=colour, alpha=0.1, linewidth=0)
            ends += [min(row["score"]), max(row["score"])]
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, linewidth=1, label="score = reward")
    axes.set_xlabel("score at the rung nearest to 20 %")
    axes.set_ylabel(report["evaluator"])


def _strips(axes: Axes, report: Report) -> None:
    scorer = shown(scorers_of(report))
    for place, strip in enumerate(report["strips"]):
        label = "candidates" if place == 0 else None
        axes.plot([place] * len(strip["rewards"]), strip["rewards"], color=GREY, marker="o", markersize=3,
                  linestyle="", alpha=0.6, label=label)  # fmt: skip
        axes.plot(place, strip["chosen"][scorer], color=COLOURS[0], marker="_", markersize=9, markeredgewidth=2.5,
                  linestyle="", label=f"chosen by {scorer}" if place == 0 else None)  # fmt: skip
    axes.set_xticks([])
    axes.set_xlabel("prompts by their mean")
    axes.set_ylabel(report["evaluator"])


ROWS: tuple[tuple[str, str, str, Draw, tuple[float, float]], ...] = (
    (
        "compute",
        "Reward against compute",
        "Mean reward of what is kept. Above the grey line, which is best-of-n, the schedule saves compute.",
        _reward_against_compute,
        (7.2, 5.2),
    ),
    (
        "spearman",
        "Choosing within prompts, by rung",
        "Spearman within prompts with its 95 % interval; dashed: pooled, as the literature reports it.",
        _spearman_by_rung,
        (7.2, 4.2),
    ),
    (
        "gain",
        "Share of the best-of-N gain, by rung",
        "0: as good as choosing at random; 1: the best candidate of every prompt. 95 % intervals over prompts.",
        _gain_by_rung,
        (7.2, 4.2),
    ),
    (
        "candidates",
        "More candidates",
        "What one kept picture earns, by the number of candidates that it is chosen from.",
        _candidates,
        (7.2, 4.2),
    ),
    (
        "calibration",
        "Score and reward",
        "Tenths of the candidates by score: their mean reward, and the middle 80 % of it. On the diagonal a score can "
        "be taken at its word.",
        _calibration,
        (7.2, 4.2),
    ),
    (
        "strips",
        "Prompt by prompt",
        "Rewards of all candidates of some prompts, and which one is chosen at the rung nearest to 20 %.",
        _strips,
        (7.2, 4.2),
    ),
)
