"""The report's pictures, as SVG for light and for dark pages."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probeselect.core.rungs import rung_of, step_at
from probeselect.evaluation.picture import Picture
from probeselect.evaluation.report import Report
from probeselect.evaluation.rows import ChoosingRow, ComputeRow, Kind
from probeselect.evaluation.tables import BLIND, shown
from probeselect.policies.simulate import CANDIDATES, CUT, PSP

COLOURS = ("#2f6fb0", "#d1742b", "#3f8f4f", "#a24fa0", "#b8433f", "#7a7a2a")
GREY = "#8a8f98"
WIDTH = 7.2  # inches
FEW = 8  # candidates, up to which a sweep over n shows little
MOST_PICTURES = 10  # as much compute as so many finished ones is drawn
INK = {"light": "#1c1e22", "dark": "#e6e8eb"}
Draw = Callable[[Axes, Report], None]


def charts(report: Report) -> list[Picture]:
    """Every picture of a report."""
    most = max((row.n for row in report.compute), default=0)
    return [_picture(report, *row) for row in ROWS if row[0] != "candidates" or most > FEW]


def _picture(report: Report, name: str, title: str, draw: Draw, height: float, caption: str) -> Picture:
    schemes = {scheme: _drawn(draw, report, height, ink, "svg") for scheme, ink in INK.items()}
    return Picture(name, title, caption, "image/svg+xml", schemes, _drawn(draw, report, height, INK["light"], "png"))


def _drawn(draw: Draw, report: Report, height: float, ink: str, file_format: str) -> bytes:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {**dict.fromkeys(names, ink), "svg.hashsalt": "probeselect", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
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


def _seeing(report: Report) -> list[tuple[str, str]]:
    """Colours and names of the scorers that see something of a candidate."""
    return list(zip(COLOURS, (name for name in report.scorers if name not in BLIND), strict=False))


def _schedules(report: Report, kind: Kind, scorer: str = "") -> list[ComputeRow]:
    """By rising cost; of all scorers, or one."""
    found = (row for row in report.compute if row.kind == kind and scorer in ("", row.scorer))
    return sorted(found, key=lambda row: row.rows)


def _cuts(report: Report, scorer: str) -> list[ComputeRow]:
    """A scorer's single cuts, from every n to one, at the step nearest to 20 %."""
    step = step_at(CUT, report.total_steps)
    return [row for row in _schedules(report, "cut", scorer) if row.steps == (step,)]


def _at(report: Report) -> str:
    """Where that is; of few steps, not quite at 20 %."""
    return f"{100 * rung_of(step_at(CUT, report.total_steps), report.total_steps):.0f} %"


def reward_against_compute(axes: Axes, report: Report) -> None:
    most = min(MOST_PICTURES * report.total_steps, max(row.rows for row in report.compute))
    best = _schedules(report, "best of n")
    _line(axes, best, most, color=GREY, linewidth=2, marker="o", markersize=4, label="best of n")
    for colour, scorer in _seeing(report):
        label = f"{scorer}: n -> 1 at {_at(report)}"
        _line(axes, _cuts(report, scorer), most, color=colour, marker="o", markersize=4, label=label)
        each = [row for row in _schedules(report, "cut", scorer) if row.n == CANDIDATES]
        _line(axes, each, color=colour, linestyle=":", label=f"{scorer}: {CANDIDATES} -> 1 at each step")
        for row in _schedules(report, "cuts", scorer):
            if (row.n, row.keep) == (PSP[0], PSP[2]):
                axes.plot(row.rows, row.reward, marker="*", markersize=11, color=colour, linestyle="",
                          label=f"{scorer}: 8 -> 4 -> 2")  # fmt: skip
    oracle = _schedules(report, "oracle")
    _line(axes, oracle, most, color=GREY, linestyle="--", label=f"oracle: n -> 1 at {_at(report)}")
    axes.set_xlabel("denoiser rows a prompt")
    axes.set_ylabel(f"mean {report.evaluator} of what is kept")
    axes.set_xlim(0, 1.02 * most)


def _line(axes: Axes, rows: Sequence[ComputeRow], most: float = math.inf, **style: Any) -> None:
    """Reward against rows, of those that cost no more than `most`; nothing where there are none."""
    if rows := [row for row in rows if row.rows <= most]:
        _band(axes, [row.rows for row in rows], [(row.reward, *row.reward_interval) for row in rows], **style)


def _band(axes: Axes, x: Sequence[float], values: Sequence[tuple[float, float, float]], **style: Any) -> None:
    """A line with its interval behind it. values: the figure, and the ends of its interval."""
    y, low, high = zip(*values, strict=True)
    axes.plot(x, y, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _by_rung(report: Report) -> Iterator[tuple[str, str, list[ChoosingRow]]]:
    """Colour, name and rows of every scorer."""
    for colour, scorer in zip(COLOURS, report.scorers, strict=False):
        rows = (row for row in report.choosing if row.scorer == scorer)
        yield colour, scorer, sorted(rows, key=lambda row: row.rung)


def _spearman_by_rung(axes: Axes, report: Report) -> None:
    for colour, scorer, rows in _by_rung(report):
        x = [row.rung for row in rows]
        found = [(row.spearman, *row.spearman_interval) for row in rows]
        _band(axes, x, found, color=colour, marker="o", markersize=4, label=scorer)
        axes.plot(x, [row.pooled_spearman for row in rows], color=colour, linestyle="--", linewidth=1)
    constant = report.rewards.pooled_of_a_constant
    axes.axhline(constant, color=GREY, linestyle="--", linewidth=1, label="pooled, of a constant for every prompt")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("rung: completed steps / all")
    axes.set_ylabel("Spearman")


def _gain_by_rung(axes: Axes, report: Report) -> None:
    for colour, scorer, rows in _by_rung(report):
        found = [(row.gain_share, *row.gain_share_interval) for row in rows]
        _band(axes, [row.rung for row in rows], found, color=colour, marker="o", markersize=4, label=scorer)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("rung: completed steps / all")
    axes.set_ylabel("share of the gain")


def more_candidates(axes: Axes, report: Report) -> None:
    """The sweep over n: what choosing among more candidates brings, whatever it costs."""
    best = _schedules(report, "best of n")
    lines = [(GREY, "best of n: all of them finished", best)]
    lines += [(colour, scorer, _cuts(report, scorer)) for colour, scorer in _seeing(report)]
    for colour, label, rows in lines:
        if rows:
            found = [(row.reward, *row.reward_interval) for row in rows]
            _band(axes, [row.n for row in rows], found, color=colour, marker="o", markersize=3, label=label)
    axes.set_xlabel(f"candidates n, of which one is kept at {_at(report)}")
    axes.set_ylabel(f"mean {report.evaluator} of what is kept")


def _calibration(axes: Axes, report: Report) -> None:
    ends: list[float] = []
    for colour, row in zip(COLOURS, report.calibration, strict=False):
        if len(row.score) > 1 and row.scorer not in BLIND:
            _band(axes, row.score, list(zip(row.reward, row.low, row.high, strict=True)), color=colour, marker="o",
                  markersize=4, label=row.scorer)  # fmt: skip
            ends += [min(row.score), max(row.score)]
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, linewidth=1, label="score = reward")
    axes.set_xlabel("score at the rung nearest to 20 %")
    axes.set_ylabel(report.evaluator)


def _strips(axes: Axes, report: Report) -> None:
    scorer = shown(report.scorers)
    for place, strip in enumerate(report.strips):
        label = "candidates" if place == 0 else None
        axes.plot([place] * len(strip.rewards), strip.rewards, color=GREY, marker="o", markersize=3,
                  linestyle="", alpha=0.6, label=label)  # fmt: skip
        axes.plot(place, strip.chosen[scorer], color=COLOURS[0], marker="_", markersize=9, markeredgewidth=2.5,
                  linestyle="", label=f"chosen by {scorer}" if place == 0 else None)  # fmt: skip
    axes.set_xticks([])
    axes.set_xlabel("prompts by their mean")
    axes.set_ylabel(report.evaluator)


ROWS: tuple[tuple[str, str, Draw, float, str], ...] = (
    ("compute", "Reward against compute", reward_against_compute, 5.2,
     "Mean reward of what is kept. Above the grey line, which is best-of-n, the schedule saves compute."),
    ("spearman", "Choosing within prompts, by rung", _spearman_by_rung, 4.2,
     "Spearman within prompts with its 95 % interval; dashed: pooled, as the literature reports it."),
    ("gain", "Share of the best-of-N gain, by rung", _gain_by_rung, 4.2,
     "0: as good as choosing at random; 1: the best candidate of every prompt. 95 % intervals over prompts."),
    ("candidates", "More candidates", more_candidates, 4.2,
     "What one kept picture earns, by the number of candidates that it is chosen from."),
    ("calibration", "Score and reward", _calibration, 4.2,
     "Tenths of the candidates by score: their mean reward, and the middle 80 % of it. On the diagonal a score can be "
     "taken at its word."),
    ("strips", "Prompt by prompt", _strips, 4.2,
     "Rewards of all candidates of some prompts, and which one is chosen at the rung nearest to 20 %."),
)  # fmt: skip
