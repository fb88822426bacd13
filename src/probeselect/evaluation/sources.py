"""A dataset and the probes to judge on it, as `evaluate` and `plan` take them from the command line."""

from dataclasses import dataclass
from pathlib import Path

from probeselect.core.errors import UsageError
from probeselect.data.dataset import Dataset
from probeselect.data.table import Table
from probeselect.embedded import shipped_probe
from probeselect.evaluation.inputs import prompts_not_seen, rungs_not_trained, table_of
from probeselect.evaluators.table import load_evaluator
from probeselect.probe.files import Probe, load_probe
from probeselect.probe.splits import read_seen


def once(named: list[tuple[str, Path]], option: str) -> dict[str, Path]:
    """By name. Raises UsageError for a name that comes twice: a report could not tell them apart."""
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{option} {twice[0]!r}: given twice; each needs a name of its own")
    return dict(named)


@dataclass(frozen=True)
class Source:
    """The groups of a dataset that no probe was trained on; what there is to be told of the others."""

    dataset: Dataset
    table: Table
    evaluator: str
    probes: dict[str, Probe]
    faults: list[str]
    notes: list[str]

    def able(self, evaluator: str) -> dict[str, Probe]:
        """The probes that predict an evaluator."""
        heads = {name: [head.evaluator for head in probe.config.heads] for name, probe in self.probes.items()}
        return {name: probe for name, probe in self.probes.items() if evaluator in heads[name]}


def open_source(folder: Path, probes: list[str], evaluator: str) -> Source:
    """Open a dataset.

    probes: "embedded", or folders. evaluator: NAME[=FOLDER]; "" for the first that a probe predicts, or the dataset's
    first. Raises UsageError for an evaluator that has not scored it, for probes that were trained on every prompt, and
    for those that read other maps than were collected.
    """
    dataset = Dataset(folder)
    folders = once(
        [(Path(each).name, shipped_probe(each, dataset.config.model) or Path(each)) for each in probes], "--probe"
    )
    loaded = {name: load_probe(path) for name, path in folders.items()}
    name, _, weights = evaluator.partition("=")
    formulas = {name: load_evaluator(name, weights)} if weights else {}
    for probe in loaded.values():
        probe.evaluators = formulas  # each is loaded once for all of them
    heads = [head.evaluator for probe in loaded.values() for head in probe.config.heads]
    predicted = [each for each in heads if each in dataset.evaluators]
    main, *_ = [*([name] if name else predicted), *dataset.evaluators, ""]
    if main not in dataset.evaluators:
        known = ", ".join(dataset.evaluators) or "none; `probeselect score` adds them"
        raise UsageError(f"--evaluator {evaluator!r}: name one that has scored {folder}: {known}")
    unseen, faults, notes = prompts_not_seen(
        dataset,
        {each: read_seen(path) for each, path in folders.items()},
        {each: probe.config.training for each, probe in loaded.items()},
    )
    notes += rungs_not_trained(dataset, loaded)
    return Source(dataset, table_of(dataset, main, unseen), main, loaded, faults, notes)
