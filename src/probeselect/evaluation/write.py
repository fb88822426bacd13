"""Writes what `evaluate` found: report.json, report.html and its pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probeselect.data.sealed import write_file
from probeselect.evaluation.charts import charts
from probeselect.evaluation.page import page
from probeselect.evaluation.picture import Picture


def write_report(report: Mapping[str, Any], sheets: Sequence[Picture], out: Path, title: str) -> None:
    """Write the page, the figures and every picture as a PNG into the folder `out`; sheets come after the charts."""
    pictures = [*charts(report), *sheets]
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_file(out / "report.html", page(report, pictures, title).encode())
    for picture in pictures:
        write_file(out / f"{picture.name}.png", picture.png)
