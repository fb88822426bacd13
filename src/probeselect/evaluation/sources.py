"""What `evaluate` and `plan` are given: score tables, or a dataset and probes that were trained on other prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from probeselect.core.errors import UsageError
from probeselect.core.score_table import ScoreTable
from probeselect.data.dataset import Dataset
from probeselect.data.score_table import read_score_tables
from probeselect.data.table import Table
from probeselect.embedded import shipped_probe
from probeselect.evaluators.table import load_evaluator
from probeselect.probe.config import Trained
from probeselect.probe.files import load_probe
from probeselect.probe.network import ProbeNetwork
from probeselect.probe.splits import digest_of, digest_of_all, part_of, read_seen

Source = str | Path | Dataset | ScoreTable | Mapping[str, str | Path]
Scorers = Sequence[str | Path] | Mapping[str, str | Path | ProbeNetwork]


@dataclass(frozen=True)
class HeldOut:
    """The groups of a dataset that no probe was trained on; what there is to be told of the others."""

    dataset: Dataset
    groups: Table
    evaluator: str
    probes: Mapping[str, ProbeNetwork]
    faults: Sequence[str]
    notes: Sequence[str]

    @property
    def others(self) -> list[str]:
        """The other evaluators that have scored all of these groups."""
        names = (name for name in self.dataset.evaluators if name != self.evaluator)
        return [name for name in names if f"reward/{name}" in self.groups.tensors]


def open_source(
    source: Source, scorers: Scorers | None, evaluator: str, rewards: str | Path | None
) -> ScoreTable | HeldOut:
    """A score table, as it is or read from files; or what is held out of a dataset. See `evaluate` for the arguments.

    Raises UsageError for arguments that do not go together, for files that are no score tables, for an evaluator that
    has not scored the dataset, and for probes that were trained on all of it or read other maps than were collected.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        source = Dataset(source)
    if isinstance(source, Dataset | ScoreTable) and rewards is not None:
        raise UsageError("rewards: are for files of scores; a dataset has its own")
    if isinstance(source, Dataset):
        return _held_out(source, scorers or (), evaluator)
    if scorers or evaluator:
        raise UsageError("scorers and evaluator: need a dataset; a score table holds scores and rewards already")
    if isinstance(source, ScoreTable):
        return source
    named = source if isinstance(source, Mapping) else {Path(source).stem: source}
    paths = {name: Path(path) for name, path in named.items()}
    return read_score_tables(paths, None if rewards is None else Path(rewards))


def _held_out(dataset: Dataset, scorers: Scorers, evaluator: str) -> HeldOut:
    named = scorers if isinstance(scorers, Mapping) else {Path(each).name: each for each in scorers}
    if len(named) < len(scorers):
        raise UsageError(f"scorers: {len(scorers)} of {len(named)} names; give each a name of its own, as a mapping")
    probes: dict[str, ProbeNetwork] = {}
    seen: dict[str, frozenset[str] | None] = {}
    for name, given in named.items():
        if isinstance(given, ProbeNetwork):
            probes[name], seen[name] = given, None
        else:
            folder = shipped_probe(str(given), dataset.config.model) or Path(given)
            probes[name], seen[name] = load_probe(folder), read_seen(folder)
    main, _, weights = evaluator.partition("=")
    heads = [head.evaluator for probe in probes.values() for head in probe.config.heads]
    formulas = {main: load_evaluator(main, weights)} if weights and main in heads else {}
    for name, probe in probes.items():
        if probe is not named[name]:  # a probe that is given has formulas of its own
            probe.evaluators = formulas  # each is loaded once for all of them
    main = main or next((name for name in (*heads, *dataset.evaluators) if name in dataset.evaluators), "")
    if main not in dataset.evaluators:
        known = ", ".join(dataset.evaluators) or "none; `score` adds them"
        raise UsageError(f"evaluator {evaluator!r}: name one that has scored {dataset.folder}: {known}")
    unseen, faults, notes = prompts_not_seen(dataset, seen, {n: probe.config.training for n, probe in probes.items()})
    groups, wanted = dataset.table([main]), set(unseen)
    rows = [i for i, prompt in enumerate(groups.prompts) if prompt in wanted]
    if not rows:
        raise UsageError(f"{dataset.folder}: holds none of the prompts to be judged")
    notes += rungs_not_trained(dataset, probes)
    return HeldOut(dataset, groups.take(torch.tensor(rows)), main, probes, faults, notes)


def prompts_not_seen(
    dataset: Dataset, seen: Mapping[str, frozenset[str] | None], trained: Mapping[str, Trained]
) -> tuple[list[str], list[str], list[str]]:
    """The dataset's prompts that no probe was trained on; faults and notes to be told about the others.

    seen: of each probe by name, the digests of the prompts that it was trained on; None where it does not say.
    trained: what its configuration says of its training. Prompts of the part of this very dataset that it was meant
    to be trained on are a note; any others are a fault: somebody took them for new.
    Raises UsageError when probes were trained on all of them.
    """
    prompts = [text for index in dataset.done() for text in dataset.prompts(index)]
    known = frozenset().union(*(digests for digests in seen.values() if digests))
    unseen = [prompt for prompt in prompts if digest_of(prompt) not in known]
    if not unseen:
        raise UsageError(f"{dataset.folder}: every prompt of it was trained on; judge by prompts that were not")
    faults: list[str] = []
    notes: list[str] = []
    for name, digests in seen.items():
        if digests is None:
            notes.append(f"{name}: does not say what it was trained on")
        elif mine := [prompt for prompt in prompts if digest_of(prompt) in digests]:
            line = f"{name} was trained on {len(mine)} of {len(prompts)} prompts: they are left out of every figure"
            (notes if _is_its_own(prompts, trained[name]) else faults).append(line)
    return unseen, faults, notes


def _is_its_own(prompts: Sequence[str], trained: Trained) -> bool:
    """Whether a probe was trained on the training part of just these prompts."""
    if (options := trained.options) is None:
        return False
    part = [prompt for prompt in prompts if part_of(prompt, options.val_share, options.test_share) == "train"]
    return trained.train_prompts == digest_of_all(part)


def rungs_not_trained(dataset: Dataset, probes: Mapping[str, ProbeNetwork]) -> list[str]:
    """A note for every probe that is asked at rungs that it was not trained at."""
    notes = []
    for name, probe in probes.items():
        if others := [rung for rung in dataset.rungs if rung not in probe.config.rungs]:
            trained, asked = (", ".join(f"{rung:g}" for rung in each) for each in (probe.config.rungs, others))
            notes.append(f"{name} was trained at {trained}; its figures at {asked} are what it makes of other rungs")
    return notes
