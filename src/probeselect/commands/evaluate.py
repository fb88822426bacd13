"""`probeselect evaluate`: how well scorers choose, as a page, pictures and figures."""

import json
from pathlib import Path
from typing import Annotated

import typer

from probeselect.commands.options import Json, check_folder
from probeselect.core.errors import UsageError


def evaluate(
    source: Annotated[Path, typer.Argument(metavar="DIR|TABLE.npz", help="a dataset, or a table of scores")],
    out: Annotated[Path, typer.Option(help="folder of report.html and report.json")],
    probe: Annotated[list[str] | None, typer.Option(help="a probe's folder or hub id; several are compared")] = None,
    evaluator: Annotated[str, typer.Option(help="NAME[=FOLDER] of the dataset; default: its first")] = "",
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
    from probeselect.jobs.evaluate import evaluate as figures_of
    from probeselect.report.evaluation import write_report

    check_folder(out)
    if source.is_dir():
        if against or rewards:
            raise UsageError("--against and --rewards: are for score tables; a dataset has its own")
        judged, notes = _of_dataset(source, evaluator, probe or [])
    else:
        if probe or evaluator:
            raise UsageError("--probe and --evaluator: need a dataset; a score table holds scores and rewards already")
        from probeselect.jobs.judging import of_score_tables

        tables = _once([(source.stem, source), *map(_named, against or [])], "--against")
        judged, notes = of_score_tables(tables, rewards), []
    report = figures_of(judged)
    report["faults"] += notes
    write_report(report, out, title or f"How well is {judged.evaluator} foreseen?")
    if as_json:
        print(json.dumps(report))
        return
    from probeselect.report.page import findings

    for fault in report["faults"]:
        print(f"FAULT: {fault}")
    for line in findings(report):
        print(line)
    print(f"{out / 'report.html'} has tables and pictures, report.json every figure")


def _named(pair: str) -> tuple[str, Path]:
    name, _, path = pair.partition("=")
    if not (name and path):
        raise UsageError(f"--against {pair!r}: write NAME=TABLE.npz")
    return name, Path(path)


def _once(named: list[tuple[str, Path]], option: str) -> dict[str, Path]:
    """By name. Raises UsageError for a name that comes twice: the report could not tell them apart."""
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{option} {twice[0]!r}: given twice; each needs a name of its own")
    return dict(named)


def _of_dataset(folder: Path, evaluator: str, names: list[str]):  # type: ignore[no-untyped-def]
    from probeselect.data.dataset import Dataset
    from probeselect.evaluators.table import load_evaluator, parse_evaluators
    from probeselect.jobs.judging import of_dataset, prompts_not_seen
    from probeselect.probe.files import load_probe
    from probeselect.probe.seen import read_seen

    dataset = Dataset(folder)
    chosen = parse_evaluators(evaluator) or [(name, None) for name in dataset.evaluators[:1]]
    if len(chosen) != 1:
        raise UsageError(f"--evaluator {evaluator!r}: name one that has scored {folder}")
    folders = _once([(Path(each).name, Path(each)) for each in names], "--probe")
    (name, weights), probes = chosen[0], {each: load_probe(path) for each, path in folders.items()}
    kinds = {(head.evaluator, head.kind) for each in probes.values() for head in each.config.heads}
    formulas = {name: load_evaluator(name, weights)} if (name, "features") in kinds else {}
    unseen, notes = prompts_not_seen(dataset, {each: read_seen(path) for each, path in folders.items()})
    return of_dataset(dataset, name, probes, formulas, unseen), notes
