"""Trains a probe on a dataset: split by prompt, resumable, with checks for leaks and a card of what came out.

Knows files and figures; the loop is `probe/training.py`. Imports no diffusers.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load, save

from probeselect.core.errors import UsageError
from probeselect.core.metrics import figures
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.sealed import canonical_json, sweep, write_file
from probeselect.data.table import Table
from probeselect.evaluators.base import Evaluator
from probeselect.probe.card import card
from probeselect.probe.checks import fuse, leaks, text_only_probe
from probeselect.probe.config import Head, Split, Trained
from probeselect.probe.files import save_probe
from probeselect.probe.initial import new_probe
from probeselect.probe.log import HeadFigures, LogLine, log_bytes, read_log
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.splits import Part, digest_of_all, part_of, write_seen
from probeselect.probe.training import Epoch, Training, TrainingSettings

STATE, LOG, PLAN = "state.safetensors", "log.jsonl", "plan.json"
VAL_GROUPS = 512  # that an epoch is judged by, at most


@dataclass(frozen=True)
class TrainJob:
    """What to train on what. Prompts are split by a hash of their text, so no prompt is in two parts."""

    folder: Path
    out: Path
    evaluators: tuple[str, ...]
    kind: Literal["auto", "features", "scalar"] = "auto"  # auto: features where the dataset has them
    taps: tuple[str, ...] = ()  # none: all that were collected but `attention`, whose channels are words
    rungs: tuple[float, ...] = ()  # none: all that were collected
    width: int = 48
    val_share: float = 0.1
    test_share: float = 0.1
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.evaluators:
            raise UsageError("--evaluators: name at least one that has scored the dataset")
        if not (0 < self.val_share < 1 and 0 <= self.test_share < 1 and self.val_share + self.test_share < 1):
            raise UsageError(
                f"val share {self.val_share:g} and test share {self.test_share:g}: must leave some to train on"
            )


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
    """One run of a job: `epochs()` trains, saving after each; `finish()` writes the probe and returns its report."""

    def __init__(self, job: TrainJob, evaluators: Mapping[str, Evaluator], rank: int = 0, world: int = 1) -> None:
        """`evaluators`: those whose formula scores predicted features, by name.

        Raises UsageError for a dataset that lacks what the job wants, or a folder with another job's state.
        """
        self.job, self.rank = job, rank
        self.dataset = Dataset(job.folder)
        self.parts = split_table(self.dataset.table(job.evaluators), job.val_share, job.test_share)
        rungs = job.rungs or self.dataset.rungs
        taps = job.taps or tuple(tap for tap in self.dataset.config.taps if tap != "attention")
        projections = {tap: torch.from_numpy(self.dataset.projection(tap)) for tap in taps}
        heads = [self._head(name) for name in job.evaluators]
        if missing := [
            head.evaluator for head in heads if head.kind == "features" and head.evaluator not in evaluators
        ]:
            raise UsageError(f"evaluator {missing[0]}: its formula is needed to train on its features")
        config = self.dataset.config
        torch.manual_seed(job.settings.seed)
        probe = new_probe(self.parts["train"], heads, config.model, config, rungs, projections, job.width)
        probe.to(job.device)
        self.judged_by = self.parts["val"].take(torch.arange(min(VAL_GROUPS, len(self.parts["val"]))))
        self.training = Training(probe, self.parts["train"], self.judged_by, evaluators, job.settings, rank, world)
        self.work = job.out / "training"
        self.history: list[LogLine] = []
        self.samples_per_second = 0.0
        self._resume()

    @property
    def probe(self) -> ProbeNetwork:
        return self.training.probe

    def _head(self, evaluator: str) -> Head:
        shape = getattr(self.parts["train"].tensors.get(f"features/{evaluator}"), "shape", None)
        if self.job.kind == "scalar" or (self.job.kind == "auto" and shape is None):
            return Head(evaluator, "scalar")
        if shape is None:
            raise UsageError(f"{self.job.folder}: holds no features of {evaluator}; only a scalar head can be trained")
        return Head(evaluator, "features", tuple(shape[2:]))

    def _plan(self) -> dict[str, Any]:
        """All that makes two runs the same; a state of another plan is refused."""
        job = {k: v for k, v in asdict(self.job).items() if k not in ("folder", "out", "device")}
        return {
            "job": job,
            "weights": self.dataset.config.weights,
            "train_prompts": digest_of_all(self.parts["train"].prompts),
        }

    def _resume(self) -> None:
        plan = canonical_json(self._plan())
        state = self.work / STATE
        if self.rank == 0:
            sweep(self.work)
            sweep(self.job.out)
        if not state.is_file():
            if self.rank == 0:
                self.work.mkdir(parents=True, exist_ok=True)
                write_file(self.work / PLAN, plan)
            return
        if not (self.work / PLAN).is_file() or (self.work / PLAN).read_bytes() != plan:
            raise UsageError(f"{self.work}: holds the state of another training; remove it, or choose another --out")
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

    def finish(self, command: str) -> dict[str, Any]:
        """Write the best probe with its card; return the report. The test prompts are looked at here, once."""
        fusions, fused = fuse(self.probe, self.judged_by, self.parts.get("test", self.judged_by))
        report: dict[str, Any] = {
            "epochs": len(self.history),
            "prompts": {name: len(table) for name, table in self.parts.items()},
            "figures": {name: self._measured(table) for name, table in self.parts.items() if name != "train"},
            "leaks": self._leaks(),
            "fusions": fused,
            "samples_per_second": round(self.samples_per_second, 1),
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        trained = Trained(
            Split(self.job.val_share, self.job.test_share),
            digest_of_all(self.parts["train"].prompts),
            asdict(self.job.settings),
        )
        self.probe.config = structs.replace(self.probe.config, fusions=fusions, training=trained)
        save_probe(self.probe, self.job.out, card(self.probe.config, self.dataset.config, report, command))
        write_seen(self.job.out, self.parts["train"].prompts)
        write_file(self.job.out / "report.json", canonical_json(report))
        return report

    def _measured(self, table: Table) -> list[dict[str, Any]]:
        rows = []
        for head in self.probe.config.heads:
            for rung in self.probe.config.rungs:
                rows.append({"evaluator": head.evaluator, "rung": rung, **self._figures(table, head, rung)})
        return rows

    def _figures(self, table: Table, head: Head, rung: float) -> dict[str, Any]:
        scores = scores_of(ProbeScorer(self.probe, head.evaluator), table, rung).numpy()
        rewards, valid = table.tensors[f"reward/{head.evaluator}"].numpy(), table.valid(head.evaluator).numpy()
        return asdict(figures(scores, rewards, valid))

    def _leaks(self) -> list[dict[str, Any]]:
        blind = text_only_probe(self.probe, self.parts["train"], self.judged_by, self.job.settings, self.job.device)
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
