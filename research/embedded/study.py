"""Stage `study`: what raises accuracy within prompts: every variant trained, judged on val prompts, tabled and drawn.

A variant that is done is read from the work folder. The test prompts are not looked at.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probeselect.data.dataset import scores_of
from probeselect.data.sealed import write_file
from probeselect.data.table import Table
from probeselect.evaluators.base import Evaluator
from probeselect.evaluators.table import load_evaluator
from probeselect.probe.blind import with_maps
from probeselect.probe.config import Head
from probeselect.probe.files import Probe, save_probe
from probeselect.probe.initial import new_probe
from probeselect.probe.losses import annealed
from probeselect.probe.maps import orthonormal, project, reduced
from probeselect.probe.options import TrainOptions
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.training import Training
from research.embedded.groups import EVALUATORS, TAPS, finished_pictures, load_groups, load_source
from research.embedded.measure import evaluator_noise, figures
from research.embedded.study_report import write_study
from research.embedded.variants import Maps, Variant, variants

PCA_GROUPS = 200
FAMILIES = {"embedded": "U-Net, diffusion", "embedded-mmdit": "MMDiT, flow matching"}


def study(work: Path, docs: Path, model: str) -> list[dict[str, Any]]:
    """Train and judge every variant that is not there yet; write the table, its picture and the rows as JSON."""
    bench = Bench(work, model)
    rows, noise = [], evaluator_noise(bench.val, EVALUATORS, finished_pictures(work, model, "val"))
    for variant in variants(model):
        rows.append(bench.row(variant))
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "history"}), flush=True)
        if len(rows) > 1:
            write_study(rows, noise, docs, model, FAMILIES[model])
    return rows


class Bench:
    """The groups of a backbone, and what its variants have reached on the val prompts."""

    def __init__(self, work: Path, model: str) -> None:
        self.model, self.folder = model, work / "study" / model
        (self.train, self.full), (self.val, _) = (load_groups(work, model, split) for split in ("train", "val"))
        self.about = load_source(model).describe()
        self.bases = {maps: self._bases(maps) for maps in {variant.maps for variant in variants(model)}}

    def row(self, variant: Variant) -> dict[str, Any]:
        """What a variant reached; trained at the first call, then read."""
        path = self.folder / f"{slug(variant)}.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            probe, row = self._trained(variant)
            save_probe(probe, self.probe_of(variant))
            write_file(path, (json.dumps(row, indent=1) + "\n").encode())
        row_read: dict[str, Any] = json.loads(path.read_text())
        return row_read

    def probe_of(self, variant: Variant) -> Path:
        return self.folder / slug(variant)

    def seen(self, table: Table, maps: Maps) -> Table:
        """A table of all channels as it would be, had it been collected with `maps`."""
        changes = {tap: self._change(maps, tap) for tap in TAPS[self.model]}
        seen = with_maps(table, lambda name, values: changes[name.split("/")[1]](values))
        return replace(seen, bases=self.bases[maps])

    def _change(self, maps: Maps, tap: str) -> Callable[[Tensor], Tensor]:
        basis = self.bases[maps][tap]

        def change(values: Tensor) -> Tensor:  # [R, N, C, H, W]
            kept = project(basis, values.flatten(0, 1)) if maps.channels else values.flatten(0, 1).float()
            return reduced(kept, maps.side).half().unflatten(0, values.shape[:2])

        return change

    def _bases(self, maps: Maps) -> dict[str, Tensor]:
        sizes = {tap: basis.shape[1] for tap, basis in self.full.items()}
        if maps.channels is None:
            return {tap: torch.eye(size) for tap, size in sizes.items()}
        if maps.basis == "pca":
            return {tap: self._principal(tap, min(maps.channels, size)) for tap, size in sizes.items()}
        kept = {tap: (min(maps.channels, size), size) for tap, size in sizes.items()}
        return {tap: orthonormal(*shape, seed=i) for i, (tap, shape) in enumerate(kept.items())}

    def _principal(self, tap: str, count: int) -> Tensor:
        """The first principal directions [count, C] of a tap over training groups and rungs."""
        rows = torch.arange(0, len(self.train), max(1, len(self.train) // PCA_GROUPS))
        names = [name for name in self.train.tensors if name.startswith(f"map/{tap}/")]
        maps = (self.train.tensors[name][rows].float() for name in names)  # [R, N, C, H, W]
        vectors = torch.cat([each.flatten(3).transpose(2, 3).flatten(0, 2) for each in maps])
        return torch.linalg.eigh(torch.cov(vectors.T))[1].flip(1)[:, :count].T.contiguous()

    def _trained(self, variant: Variant) -> tuple[Probe, dict[str, Any]]:
        began = time.monotonic()
        train = self.train.take(torch.arange(min(variant.prompts or len(self.train), len(self.train))))
        train, val = (self.seen(table, variant.maps) for table in (train, self.val))
        judges = {name: load_evaluator(name) for name in variant.evaluators}
        heads = [self._head(name, variant.kind) for name in variant.evaluators]
        torch.manual_seed(variant.settings.seed)
        bases = {tap: self.bases[variant.maps][tap] for tap in variant.taps}
        probe = new_probe(train, heads, self.model, self.about, variant.rungs, bases, variant.width)
        epochs = list(Training(probe, train, val, judges, variant.settings).epochs())
        found = {
            name: {f"{rung:g}": judged(probe, val, judges, name, rung) for rung in variant.rungs}
            for name in variant.evaluators
        }
        return probe, {
            "question": variant.question,
            "name": variant.name,
            "prompts": len(train),
            "epochs": len(epochs),
            "parameters": sum(p.numel() for p in probe.parameters()),
            "bytes": sum(_stored(train, tap, variant.rungs[0]) for tap in variant.taps),
            "minutes": round((time.monotonic() - began) / 60, 2),
            "val": found,
            "annealing": [_annealed(variant.settings, epoch.epoch) for epoch in epochs],
            "history": [
                {"loss": round(e.loss, 4), **{f"{n}@{r:g}": round(f.spearman, 4) for (n, r), f in e.figures.items()}}
                for e in epochs
            ],
        }

    def _head(self, name: str, kind: str) -> Head:
        shape = tuple(self.train.tensors[f"features/{name}"].shape[2:])
        return Head(name, "features", shape) if kind == "features" else Head(name, "scalar")


def judged(probe: Probe, table: Table, judges: dict[str, Evaluator], name: str, rung: float) -> dict[str, Any]:
    """The figures of a probe's head at a rung, for a name of an evaluator."""
    scores = scores_of(ProbeScorer(probe, name), table, rung)
    return figures(scores, table.tensors[f"reward/{name}"])


def _annealed(settings: TrainOptions, epoch: int) -> dict[str, float]:
    """Temperature and margin at the end of an epoch."""
    done = (epoch + 1) / settings.epochs
    return {"temperature": annealed(settings.temperature, done), "margin": annealed(settings.margin, done)}


def _stored(table: Table, tap: str, rung: float) -> int:
    """Bytes of a candidate's map of a tap at a rung, in fp16."""
    return int(torch.tensor(table.tensors[f"map/{tap}/{rung:g}"][torch.tensor([0])].shape[2:]).prod()) * 2


def slug(variant: Variant) -> str:
    return re.sub(r"\W+", "-", f"{variant.question} {variant.name}").strip("-")


def best_to_ship(bench: Bench) -> Variant:
    """The variant that is best on val of those that may ship: by Spearman and share of the gain, over all rungs."""

    def reached(variant: Variant) -> float:
        found = bench.row(variant)["val"][variant.evaluators[0]].values()
        return float(sum(at["spearman"] + at["gain_share"] for at in found))

    return max((variant for variant in variants(bench.model) if variant.may_ship), key=reached)
