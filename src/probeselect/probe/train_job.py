"""Trains a probe on a dataset: split by prompt, resumable, with checks for leaks and a card of what came out.

`train` does all of it in one call; `open_run` gives its `TrainRun`, to go through epoch by epoch. Knows files and
figures; the loop is `probe/training.py`. Imports no diffusers.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load, save

from probeselect.core.errors import UsageError
from probeselect.core.files import read_json
from probeselect.core.metrics import figures
from probeselect.core.options import changed
from probeselect.data.config import differences
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.sealed import canonical_json, sweep, write_file
from probeselect.data.table import Table
from probeselect.evaluators.base import Evaluator
from probeselect.evaluators.table import load_evaluator, parse_evaluator
from probeselect.probe.card import HeadRow, TrainReport, card
from probeselect.probe.checks import Leak, fuse, leaks, text_only_probe
from probeselect.probe.config import Head, Trained
from probeselect.probe.files import save_probe
from probeselect.probe.initial import new_probe
from probeselect.probe.log import HeadFigures, LogLine, log_bytes, read_log
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.options import TrainOptions
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.splits import Part, digest_of_all, part_of, write_seen
from probeselect.probe.training import Epoch, Training

STATE, LOG, PLAN = "state.safetensors", "log.jsonl", "plan.json"
VAL_GROUPS = 512  # that an epoch is judged by, at most


def train(
    data: str | Path,
    out: str | Path,
    options: TrainOptions = TrainOptions(),  # noqa: B008 (frozen)
    *,
    device: str | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
) -> TrainReport | None:
    """Train a probe on the dataset in `data`, write it to `out` and return its report, the content of report.json.

        train("data", "my-probe", TrainOptions(epochs=3))

    Make an interrupted call again, and it goes on where it was. Under `accelerate launch` every process makes the call;
    the first one writes the probe and returns the report, the others return None.

    Args:
        data: folder that `probeselect collect` has filled.
        out: folder of the probe.
        options: how to train; a folder that holds the state of a run with other options is refused.
        device: such as "cpu" or "cuda:1"; default: a GPU where there is one.
        evaluators: your own evaluators by name; those of the table need not be given.

    Raises:
        UsageError: an option that the dataset does not allow, or another run's folder; the message says which.
    """
    run = open_run(data, out, options, device=device, evaluators=evaluators)
    for _ in run.epochs():
        pass
    return run.finish(f'train("{data}", "{out}", {changed(options)})') if run.rank == 0 else None


def open_run(
    data: str | Path,
    out: str | Path,
    options: TrainOptions = TrainOptions(),  # noqa: B008 (frozen)
    *,
    device: str | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
) -> "TrainRun":
    """The run of `train`, to go through epoch by epoch; on the device of this process, as one of those launched."""
    from accelerate import PartialState

    has_gpu = torch.cuda.is_available()
    launched = PartialState(cpu=device == "cpu" or not has_gpu)  # without `cpu` it does not see ranks on CPUs
    # Only of several processes has each a device of its own; a state that exists already may have another call's.
    usual = str(launched.device) if launched.num_processes > 1 else "cuda" if has_gpu else "cpu"
    dataset, given, device = Dataset(data), dict(evaluators or {}), device or usual
    done = dataset.done()
    for name, text in _named(options, dataset).items():
        if name not in given and options.kind != "scalar" and done and dataset.has_features(name, done[0]):
            given[name] = load_evaluator(*parse_evaluator(text), device=device)
    return TrainRun(dataset, out, options, given, device, launched.process_index, launched.num_processes)


def _named(options: TrainOptions, dataset: Dataset) -> dict[str, str]:
    """The evaluators to predict, by name, as NAME or NAME=FOLDER."""
    return {text.partition("=")[0]: text for text in options.evaluators or dataset.evaluators}


def _decided(options: TrainOptions, dataset: Dataset) -> TrainOptions:
    """The options as the dataset decides what was left open. Evaluators by name: where their weights lie may differ."""
    names = tuple(_named(options, dataset))
    if not names:
        raise UsageError(f"{dataset.folder}: no evaluator has scored it; `probeselect score` does that")
    # Of all taps that were collected, `attention` is left out: its channels are words, not features.
    taps = options.taps or tuple(tap for tap in dataset.config.taps if tap != "attention")
    return replace(options, evaluators=names, taps=taps, rungs=options.rungs or dataset.rungs)


def split_table(table: Table, val_share: float, test_share: float) -> dict[Part, Table]:
    """The parts of a table. Raises UsageError when there is nothing to train on, or to validate with."""
    parts = [part_of(prompt, val_share, test_share) for prompt in table.prompts]
    rows = {
        name: torch.tensor([i for i, part in enumerate(parts) if part == name]) for name in ("train", "val", "test")
    }
    for name in ("train", "val"):
        if not len(rows[name]):
            raise UsageError(f"{len(table)} prompts leave none to {name} on; collect more")
    return {name: table.take(chosen) for name, chosen in rows.items() if len(chosen)}  # type: ignore[misc]


class TrainRun:
    """One run: `epochs()` trains, saving after each; `finish()` writes the probe and returns its report.

    Prompts are split by a hash of their text, so no prompt is in two parts.
    """

    def __init__(
        self,
        dataset: Dataset,
        out: str | Path,
        options: TrainOptions,
        evaluators: Mapping[str, Evaluator],
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`evaluators`: those whose formula scores predicted features, by name. `rank` of `world` processes.

        Raises UsageError for a dataset that lacks what the options want, or a folder with another run's state.
        """
        self.dataset, self.out, self.device, self.rank = dataset, Path(out), device, rank
        self.options = options = _decided(options, dataset)
        self.parts = split_table(dataset.table(options.evaluators), options.val_share, options.test_share)
        projections = {tap: torch.from_numpy(dataset.projection(tap)) for tap in options.taps}
        heads = [self._head(name) for name in options.evaluators]
        if missing := [
            head.evaluator for head in heads if head.kind == "features" and head.evaluator not in evaluators
        ]:
            raise UsageError(f"evaluator {missing[0]}: its formula is needed to train on its features")
        config = dataset.config
        torch.manual_seed(options.seed)
        probe = new_probe(self.parts["train"], heads, config.model, config, options.rungs, projections, options.width)
        probe.to(device)
        self.judged_by = self.parts["val"].take(torch.arange(min(VAL_GROUPS, len(self.parts["val"]))))
        self.training = Training(probe, self.parts["train"], self.judged_by, evaluators, options, rank, world)
        self.work = self.out / "training"
        self.history: list[LogLine] = []
        self.samples_per_second = 0.0
        self._resume()

    @property
    def probe(self) -> ProbeNetwork:
        return self.training.probe

    def _head(self, evaluator: str) -> Head:
        shape = getattr(self.parts["train"].tensors.get(f"features/{evaluator}"), "shape", None)
        if self.options.kind == "scalar" or (self.options.kind == "auto" and shape is None):
            return Head(evaluator, "scalar")
        if shape is None:
            raise UsageError(
                f"{self.dataset.folder}: holds no features of {evaluator}; only a scalar head can be trained"
            )
        return Head(evaluator, "features", tuple(shape[2:]))

    def _plan(self) -> dict[str, Any]:
        """All that makes two runs the same; a state of another plan is refused."""
        return {
            "options": asdict(self.options),
            "weights": self.dataset.config.weights,
            "train_prompts": digest_of_all(self.parts["train"].prompts),
        }

    def _resume(self) -> None:
        plan = canonical_json(self._plan())
        state = self.work / STATE
        if self.rank == 0:
            sweep(self.work)
            sweep(self.out)
        if not state.is_file():
            if self.rank == 0:
                self.work.mkdir(parents=True, exist_ok=True)
                write_file(self.work / PLAN, plan)
            return
        found = read_json(self.work / PLAN, dict[str, Any]) if (self.work / PLAN).exists() else {}
        if lines := list(differences(found, json.loads(plan))):
            raise UsageError(
                f"{self.work}: holds the state of another training ({'; '.join(lines)}); remove it, or choose another "
                "folder for the probe"
            )
        try:
            self.training.restore(load(state.read_bytes()))
        except (SafetensorError, LookupError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(f"{state}: no training can go on from it ({why}); remove {self.work}") from error
        self.history = read_log(self.work / LOG)[: self.training.epoch]

    def epochs(self) -> Iterator[LogLine]:
        """Train on from wherever the last run was stopped; yield a line for every epoch, once it is saved."""
        began = time.monotonic()
        for epoch in self.training.epochs():
            samples = len(self.parts["train"]) * self.dataset.n
            self.samples_per_second = samples / (time.monotonic() - began)
            self.history.append(_line(epoch))
            if self.rank == 0:
                # The log first: a line too many is cut when a run goes on, one that is missing could not be made up.
                write_file(self.work / LOG, log_bytes(self.history))
                write_file(self.work / STATE, save({k: v.cpu().contiguous() for k, v in self.training.state().items()}))
            yield self.history[-1]
            began = time.monotonic()

    def finish(self, command: str) -> TrainReport:
        """Write the best probe with its card; return the report. The test prompts are looked at here, once."""
        fusions, fused = fuse(self.probe, self.judged_by, self.parts.get("test", self.judged_by))
        report = TrainReport(
            epochs=len(self.history),
            prompts={name: len(table) for name, table in self.parts.items()},
            figures={name: list(self._measured(table)) for name, table in self.parts.items() if name != "train"},
            leaks=self._leaks(),
            fusions=fused,
            samples_per_second=round(self.samples_per_second, 1),
            peak_memory_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        )
        trained = Trained(digest_of_all(self.parts["train"].prompts), self.options)
        self.probe.config = structs.replace(self.probe.config, fusions=fusions, training=trained)
        save_probe(self.probe, self.out, card(self.probe.config, self.dataset.config, report, command))
        write_seen(self.out, self.parts["train"].prompts)
        write_file(self.out / "report.json", canonical_json(asdict(report)))
        return report

    def _measured(self, table: Table) -> Iterator[HeadRow]:
        for name in (head.evaluator for head in self.probe.config.heads):
            rewards, valid = table.tensors[f"reward/{name}"].numpy(), table.valid(name).numpy()
            for rung in self.probe.config.rungs:
                scores = scores_of(ProbeScorer(self.probe, name), table, rung).numpy()
                yield HeadRow(**vars(figures(scores, rewards, valid)), evaluator=name, rung=rung)

    def _leaks(self) -> list[Leak]:
        blind = text_only_probe(self.probe, self.parts["train"], self.judged_by, self.options, self.device)
        return leaks(self.probe, blind, self.judged_by)


def _line(epoch: Epoch) -> LogLine:
    figures = {
        f"{name}@{rung:g}": HeadFigures(round(float(found.spearman), 4), round(float(found.gain), 4))
        for (name, rung), found in epoch.figures.items()
    }
    loss, spearman = round(epoch.loss, 5), round(epoch.spearman, 4)
    return LogLine(epoch=epoch.epoch, loss=loss, spearman=spearman, best=epoch.best, figures=figures)


def command_line() -> str:
    """The command that this process was started by, for the card."""
    return " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
