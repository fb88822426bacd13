"""Writes what `evaluate` found: report.json, report.html."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probeselect.data.sealed import write_file
from probeselect.report.charts import charts
from probeselect.report.page import page


def write_report(report: Mapping[str, Any], out: Path, title: str) -> None:
    """Write the page and the figures into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_file(out / "report.html", page(report, charts(report), title).encode())
