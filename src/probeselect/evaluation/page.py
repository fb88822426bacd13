"""report.html: one file that asks nobody for anything. Everything that comes from data is escaped."""

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import get_type_hints

from probeselect.data.sealed import write_file
from probeselect.evaluation.charts import charts
from probeselect.evaluation.picture import Picture
from probeselect.evaluation.report import Report
from probeselect.evaluation.tables import BLIND


def write_report(report: Report, out: Path, title: str) -> None:
    """Write report.html, report.json and every picture as a PNG into the folder `out`; sheets come after the charts."""
    pictures = [*charts(report), *report.sheets]
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "report.json", report.to_json())
    write_file(out / "report.html", page(report, pictures, title).encode())
    for picture in pictures:
        write_file(out / f"{picture.name}.png", picture.png)


def page(report: Report, pictures: Sequence[Picture], title: str) -> str:
    """The whole page."""
    assets = files("probeselect.evaluation") / "assets"
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    body = "\n".join(_body(report, pictures, title))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _body(report: Report, pictures: Sequence[Picture], title: str) -> Iterator[str]:
    ends = report.rewards
    yield f"<h1>{escape(title)}</h1>"
    yield (
        f"<p>{report.prompts} prompts, {report.candidates} candidates, judged by "
        f"<b>{escape(report.evaluator)}</b>: {ends.mean:.3f} on the mean, {ends.best:.3f} for the best of "
        "each prompt. 95 % intervals over prompts throughout.</p>"
    )
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in report.faults)
    yield f'<ul class="faults">{faults}</ul>' if faults else '<p class="fine">No fault of the data was found.</p>'
    yield from (f"<p>{escape(note)}.</p>" for note in report.notes)
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in findings(report)) + "</ul>"
    yield from map(_figure, pictures)
    yield "<h2>Choosing within prompts</h2>"
    yield _table(report.choosing)
    if report.paired:
        yield "<h2>One scorer over another, paired by prompt</h2>"
        yield _table(report.paired)
    if report.evaluators:
        yield "<h2>Every evaluator at every rung</h2>"
        yield _table(report.evaluators)
        yield "<h2>What choosing by one does to the others</h2>"
        yield (
            "<p>One picture of each prompt is kept, by a scorer at the rung nearest to 20 % or by an evaluator on the "
            "finished pictures. A way of choosing that games its own evaluator gains nothing by the others.</p>"
        )
        yield _table(report.kept)
    if report.distances:
        yield "<h2>Distance of the kept pictures from all</h2>"
        yield (
            "<p>FID and KID by the features of one network. Few pictures are far from many by chance: compare with "
            "the random draw, which is as large.</p>"
        )
        yield _table(report.distances)
    if report.leaks:
        yield "<h2>What blind scorers know</h2>"
        yield _table(report.leaks)
    yield "<h2>At equal compute</h2>"
    yield _table(report.compute)


def findings(report: Report) -> Iterator[str]:
    """What the figures say, in sentences: what nothing is worth, and each scorer's best schedule against best-of-n."""
    constant = report.rewards.pooled_of_a_constant
    yield f"A constant for every prompt, which cannot choose, has a pooled Spearman of {constant:.2f}."
    for scorer in (name for name in report.scorers if name not in BLIND):
        replayed = [row for row in report.compute if row.scorer == scorer and row.kind in ("cut", "cuts")]
        if rows := [row for row in replayed if not math.isnan(row.lead)]:
            best = max(rows, key=lambda row: row.lead)
            low, high = best.lead_interval
            verdict = "more than" if low > 0 else "less than" if high < 0 else "no clear difference from"
            yield (
                f"{scorer}: its best schedule here, {best.schedule}, earns {best.reward:.3f} for {best.rows} rows, "
                f"{verdict} best-of-n at the same cost ({best.lead:+.3f} [{low:.3f}, {high:.3f}])."
            )


def _figure(picture: Picture) -> str:
    light, dark = (_data_uri(picture.media, picture.schemes[scheme]) for scheme in ("light", "dark"))
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">' if dark != light else ""
    return (
        f"<figure><h2>{escape(picture.title)}</h2><picture>{source}"
        f'<img src="{light}" alt="{escape(picture.caption)}" tabindex="0"></picture>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _data_uri(media: str, data: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _table(rows: Sequence[object]) -> str:
    """Every field that has a heading, but for those that no row has a value of."""
    hints = get_type_hints(type(rows[0]), include_extras=True)
    headings = {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    columns = {name: head for name, head in headings.items() if any(getattr(row, name) is not None for row in rows)}
    head = "".join(f'<th tabindex="0" scope="col">{escape(name)}</th>' for name in columns.values())
    body = "".join(f"<tr>{''.join(_cell(row, name) for name in columns)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(row: object, name: str) -> str:
    value, interval = getattr(row, name), getattr(row, f"{name}_interval", None)
    if isinstance(value, str):
        return f'<td data-sort="{escape(value)}">{escape(value)}</td>'
    if value is None or math.isnan(value):
        return '<td data-sort="">-</td>'
    if isinstance(value, bool):
        shown = "yes" if value else "no"
    elif isinstance(value, int):
        shown = str(value)
    else:
        shown = f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
    if interval:
        shown += f" <small>[{interval[0]:.3f}, {interval[1]:.3f}]</small>"
    return f'<td class="number" data-sort="{value}">{shown}</td>'
