"""`probeselect train`: a probe from a dataset."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probeselect.commands.from_dataclass import from_dataclass
from probeselect.commands.options import Json, check_device, check_source
from probeselect.commands.registry import command
from probeselect.probe.options import TrainOptions

if TYPE_CHECKING:
    from probeselect.probe.log import LogLine


@command("Probes")
@from_dataclass
def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a dataset that collect has made")],
    out: Annotated[Path, typer.Option(help="folder of the probe; run again to resume")],
    options: TrainOptions,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: a GPU where there is one)")] = None,
    as_json: Json = False,
) -> None:
    """Train a probe on a dataset; with `accelerate launch -m probeselect train ...` on several devices."""
    check_source(folder)
    check_device("--device", device)

    from probeselect.probe.card import fusion_line, leak_line
    from probeselect.probe.train_job import command_line, open_run

    run = open_run(folder, out, options, device=device)
    speaks = run.rank == 0
    if speaks and run.history:
        print(f"probeselect: {out}: goes on after epoch {run.history[-1].epoch}", file=sys.stderr)

    from tqdm import tqdm

    with tqdm(total=options.epochs, initial=len(run.history), unit=" epochs", disable=None if speaks else True) as bar:
        for line in run.epochs():
            bar.update()
            bar.write(_told(line), file=sys.stderr) if speaks and not as_json else None
    if not speaks:
        return
    report = run.finish(command_line())
    if as_json:
        print(json.dumps(asdict(report)))
        return
    for part, rows in report.figures.items():
        for row in rows:
            print(
                f"{part:5} {row.evaluator} at {row.rung:g}: Spearman within prompts {row.spearman:.3f}, "
                f"{row.gain_share:.0%} of the gain, pooled {row.pooled_spearman:.2f}"
            )
    for leak in report.leaks:
        print(leak_line(leak), file=sys.stderr if leak.leak else sys.stdout)
    for fusion in report.fusions:
        print(fusion_line(fusion))
    print(f"{out} is the probe: generate --scorer {out}")


def _told(line: "LogLine") -> str:
    best = " (best so far)" if line.best else ""
    return f"epoch {line.epoch}: loss {line.loss}, Spearman within val prompts {line.spearman}{best}"
