"""`probeselect evaluate`: how well scorers choose, as a page, pictures and figures."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from probeselect.commands.options import Json, check_folder
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
    from probeselect.evaluation.timing import read_timing
    from probeselect.evaluation.write import write_report

    check_folder(out)
    seconds = read_timing(timing) if timing else None
    sheets: Sequence[Any] = ()
    if source.is_dir():
        if against or rewards:
            raise UsageError("--against and --rewards: are for score tables; a dataset has its own")
        report, sheets = _of_dataset(source, evaluator, probe or [], network, seconds)
    else:
        if probe or evaluator or network:
            raise UsageError(
                "--probe, --evaluator and --network: need a dataset; a score table holds scores and rewards already"
            )
        from probeselect.evaluation.figures import evaluate as figures_of
        from probeselect.evaluation.inputs import of_score_tables
        from probeselect.evaluation.sources import once

        tables = once([(source.stem, source), *map(_named, against or [])], "--against")
        report = figures_of(of_score_tables(tables, rewards), timing=seconds)
    write_report(report, sheets, out, title or f"How well is {report['evaluator']} foreseen?")
    if as_json:
        print(json.dumps(report))
        return
    from probeselect.evaluation.page import findings

    for fault in report["faults"]:
        print(f"FAULT: {fault}")
    for line in (*report["notes"], *findings(report)):
        print(line)
    print(f"{out / 'report.html'} has tables and pictures, report.json every figure")


def _named(pair: str) -> tuple[str, Path]:
    name, _, path = pair.partition("=")
    if not (name and path):
        raise UsageError(f"--against {pair!r}: write NAME=TABLE.npz")
    return name, Path(path)


def _of_dataset(folder: Path, evaluator: str, names: list[str], network: str, seconds: Any) -> tuple[Any, Any]:
    """The report and the sheets of a dataset."""
    from probeselect.evaluation.figures import evaluate as figures_of
    from probeselect.evaluation.inputs import leaks_of, of_table, text_only
    from probeselect.evaluation.keeping import network_of, of_the_kept
    from probeselect.evaluation.sheets import sheets
    from probeselect.evaluation.sources import open_source

    source = open_source(folder, names, evaluator)
    dataset, table, probes, main = source.dataset, source.table, source.probes, source.evaluator
    features = network_of(network, dataset) if network else None
    with _bar() as watch:
        judged = of_table(dataset, table, main, probes, watch)
        others = [
            of_table(dataset, table, name, source.able(name), watch)
            for name in dataset.evaluators
            if name != main and f"reward/{name}" in table.tensors
        ]
        if probes and len(table) > 1:
            watch("text only")
            judged = text_only(judged, table, next(iter(probes.values())))
        watch("blind probes")
        leaks = leaks_of(judged, table, probes)
        watch("figures")
        report = figures_of(judged, others, seconds, leaks)
        report["faults"] = source.faults + report["faults"]
        report["notes"] = source.notes
        if features is not None:
            watch("FID and KID")
            report["distances"] = of_the_kept(judged, features(table), network)
        watch("pictures")
        return report, list(sheets(dataset, table, judged))


@contextmanager
def _bar() -> Iterator[Any]:
    """Says on stderr what is being done and for how long; silent where that is no terminal."""
    from tqdm import tqdm

    form = "{desc} [{elapsed}, {n_fmt} parts done]"
    with tqdm(file=sys.stderr, disable=None, leave=False, bar_format=form) as bar:

        def watch(what: str) -> None:
            bar.set_description(what)
            bar.update()

        yield watch
