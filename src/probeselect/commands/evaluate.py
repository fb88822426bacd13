"""`probeselect evaluate`: how well scorers choose, as a page, pictures and figures."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from probeselect.commands.options import Json, check_folder, check_source, once
from probeselect.commands.registry import command
from probeselect.core.errors import UsageError


@command("Probes")
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="DIR|TABLE.npz", help="a dataset, or a table of scores")],
    out: Annotated[Path, typer.Option(help="folder of report.html, report.json and the pictures")],
    probe: Annotated[list[str] | None, typer.Option(help="embedded, or a probe's folder; several are compared")] = None,
    evaluator: Annotated[
        str, typer.Option(help="NAME[=FOLDER] of the dataset; default: what the probe predicts, or its first")
    ] = "",
    network: Annotated[
        str, typer.Option(help="for FID and KID: an evaluator of the dataset with features, or MODULE:NAME")
    ] = "",
    timing: Annotated[
        list[Path] | None, typer.Option(help="result.json of generate, one a scorer: costs in seconds too")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="NAME=TABLE.npz: other scores of the same candidates")
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="table whose last row is the finished pictures, where TABLE.npz has none")
    ] = None,
    title: Annotated[str, typer.Option(help="of the page")] = "",
    as_json: Json = False,
) -> None:
    """Judge scorers within prompts and at equal compute, on prompts that no probe was trained on."""
    check_folder(out)
    check_source(source)
    if source.is_dir():
        if against or rewards:
            raise UsageError("--against and --rewards: are for score tables; a dataset has its own")
    elif probe or evaluator or network:
        raise UsageError(
            "--probe, --evaluator and --network: need a dataset; a score table holds scores and rewards already"
        )
    tables = once([(source.stem, source), *map(_named, against or [])], "--against")
    scorers = once([(Path(each).name, each) for each in probe or []], "--probe")

    from probeselect.evaluation.evaluate import evaluate as report_on
    from probeselect.evaluation.page import findings, write_report
    from probeselect.evaluation.timing import read_timing

    with _bar() as watch:
        report = report_on(
            source if source.is_dir() else tables, scorers, evaluator=evaluator, rewards=rewards,
            network=network or None, timing=read_timing(timing) if timing else None, pictures=True, watch=watch,
        )  # fmt: skip
    write_report(report, out, title or f"How well is {report.evaluator} foreseen?")
    if as_json:
        print(report.to_json().decode(), end="")
        return
    for fault in report.faults:
        print(f"FAULT: {fault}")
    for line in (*report.notes, *findings(report)):
        print(line)
    print(f"{out / 'report.html'} has tables and pictures, report.json every figure")


def _named(pair: str) -> tuple[str, Path]:
    name, _, path = pair.partition("=")
    if not (name and path):
        raise UsageError(f"--against {pair!r}: write NAME=TABLE.npz")
    return name, Path(path)


@contextmanager
def _bar() -> Iterator[Callable[[str], None]]:
    """Says on stderr what is being done and for how long; silent where that is no terminal."""
    from tqdm import tqdm

    form = "{desc} [{elapsed}, {n_fmt} parts done]"
    with tqdm(file=sys.stderr, disable=None, leave=False, bar_format=form) as bar:

        def watch(what: str) -> None:
            bar.set_description(what)
            bar.update()

        yield watch
