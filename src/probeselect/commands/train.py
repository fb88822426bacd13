"""`probeselect train`: a probe from a dataset."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probeselect.commands.options import Json, fractions
from probeselect.commands.registry import command
from probeselect.core.errors import UsageError

if TYPE_CHECKING:
    from probeselect.probe.log import LogLine

KINDS = ("auto", "features", "scalar")


@command("Probes")
def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a dataset that collect has made")],
    out: Annotated[Path, typer.Option(help="folder of the probe; rerun = resume")],
    evaluators: Annotated[
        str, typer.Option(help="NAME[=FOLDER],... to predict, a head each; default: all that have scored it")
    ] = "",
    kind: Annotated[
        str, typer.Option(help="features: distil the evaluator; scalar: its reward alone; auto: as the data allow")
    ] = "auto",
    taps: Annotated[str, typer.Option(help="of those collected; default: all")] = "",
    rungs: Annotated[str, typer.Option(help="of those collected; default: all")] = "",
    ranking: Annotated[str, typer.Option(help="listwise, listwise-batch, pairwise, listnet, regression")] = "listwise",
    ranking_weight: Annotated[float, typer.Option(help="of the ranking loss")] = 0.3,
    contrast_weight: Annotated[float, typer.Option(help="of the alignment with the prompt")] = 0.02,
    distillation_weight: Annotated[float, typer.Option(help="of the features' distance")] = 1.0,
    epochs: Annotated[int, typer.Option(help="at most")] = 10,
    patience: Annotated[int | None, typer.Option(help="stop after so many epochs without a better val figure")] = None,
    groups_per_batch: Annotated[int, typer.Option(help="prompts in a batch")] = 8,
    rate: Annotated[float, typer.Option(help="peak learning rate")] = 2e-3,
    width: Annotated[int, typer.Option(help="channels of the probe")] = 48,
    val_share: Annotated[float, typer.Option(help="of the prompts, to choose the epoch by")] = 0.1,
    test_share: Annotated[float, typer.Option(help="of the prompts, to be looked at once")] = 0.1,
    bf16: Annotated[bool, typer.Option("--bf16", help="the encoder in bfloat16")] = False,
    seed: Annotated[int, typer.Option(help="of weights and order")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; default: a GPU where there is one")] = None,
    as_json: Json = False,
) -> None:
    """Train a probe on a dataset; with `accelerate launch -m probeselect train ...` on several devices."""
    if kind not in KINDS:
        raise UsageError(f"--kind {kind!r}: is not one of {', '.join(KINDS)}")

    import torch
    from accelerate import PartialState

    from probeselect.data.dataset import Dataset
    from probeselect.evaluators.table import load_evaluator, parse_evaluators
    from probeselect.probe.card import fusion_line, leak_line
    from probeselect.probe.objective import Weights
    from probeselect.probe.train_job import TrainJob, TrainRun, command_line
    from probeselect.probe.training import TrainingSettings

    weights = Weights(ranking_weight, contrast_weight, distillation_weight, ranking)  # type: ignore[arg-type]
    settings = TrainingSettings(
        epochs=epochs, groups_per_batch=groups_per_batch, rate=rate, weights=weights, patience=patience, bf16=bf16,
        seed=seed,
    )  # fmt: skip
    dataset = Dataset(folder)
    named = dict(parse_evaluators(evaluators)) or dict.fromkeys(dataset.evaluators)
    processes = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())  # it would not see ranks on CPUs
    job = TrainJob(
        folder, out, tuple(named), kind, _names(taps), fractions(rungs) if rungs else (), width,  # type: ignore[arg-type]
        val_share, test_share, settings, device or str(processes.device),
    )  # fmt: skip
    done = dataset.done()
    formulas = [name for name in named if kind != "scalar" and done and dataset.has_features(name, done[0])]
    judges = {name: load_evaluator(name, named[name], device=job.device) for name in formulas}
    run = TrainRun(job, judges, processes.process_index, processes.num_processes)
    speaks = processes.is_main_process
    if speaks and run.history:
        print(f"probeselect: {out}: goes on after epoch {run.history[-1].epoch}", file=sys.stderr)

    from tqdm import tqdm

    with tqdm(total=epochs, initial=len(run.history), unit=" epochs", disable=None if speaks else True) as bar:
        for line in run.epochs():
            bar.update()
            bar.write(_told(line), file=sys.stderr) if speaks and not as_json else None
    if not speaks:
        return
    report = run.finish(command_line())
    if as_json:
        print(json.dumps(report))
        return
    for part, rows in report["figures"].items():
        for row in rows:
            print(
                f"{part:5} {row['evaluator']} at {row['rung']:g}: Spearman within prompts {row['spearman']:.3f}, "
                f"{row['gain_share']:.0%} of the gain, pooled {row['pooled_spearman']:.2f}"
            )
    for leak in report["leaks"]:
        print(leak_line(leak), file=sys.stderr if leak["leak"] else sys.stdout)
    for fusion in report["fusions"]:
        print(fusion_line(fusion))
    print(f"{out} is the probe: generate --scorer {out}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _told(line: "LogLine") -> str:
    best = " (best so far)" if line.best else ""
    return f"epoch {line.epoch}: loss {line.loss}, Spearman within val prompts {line.spearman}{best}"
