"""Groups as named tensors [G, ...]: in memory, or read from a dataset as they are asked for; and as stages.

map/TAP/RUNG [G, N, P, H, W] fp16, prompt [G, D] fp16, seeds and valid [G, N],
reward/EVALUATOR [G, N] fp32, preview/EVALUATOR/RUNG [G, N] fp32, features/EVALUATOR [G, N, ...] fp16
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.core.rungs import completed_steps
from probeselect.core.stage import Stage
from probeselect.data.gallery import Gallery, Previews

GROUPS_AT_ONCE = 32  # in a stage


class Stored:
    """A tensor [G, ...] that stays on the disk; `stored[rows]` reads those groups and no others, by `Dataset.group`."""

    def __init__(self, read: Callable[[int, list[str]], Mapping[str, Any]], name: str, groups: Tensor) -> None:
        self.read, self.name, self.groups = read, name, groups
        self.shape = (len(groups), *self._read(int(groups[0])).shape)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._read(int(group)) for group in self.groups[rows]])

    def _read(self, group: int) -> Tensor:
        return torch.from_numpy(self.read(group, [self.name])[self.name])

    def of(self, rows: Tensor) -> "Stored":
        """The same tensor of some of the groups."""
        return Stored(self.read, self.name, self.groups[rows])


@dataclass(frozen=True)
class Table:
    """Groups with their prompts; `tensors[name][rows]` gives those of the groups `rows`."""

    prompts: list[str]
    tensors: dict[str, Any]
    bases: Mapping[str, Tensor] = field(default_factory=dict)  # tap -> [P, C] that its maps were projected by
    total_steps: int = 0  # that the pictures took; 0 where it is not known
    gallery: Gallery | None = None  # has the previews, where they were kept

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def n(self) -> int:
        """Candidates in a group."""
        return int(self.tensors["valid"].shape[1])

    def take(self, rows: Tensor) -> "Table":
        """Some of the groups, in the order of `rows`; what is on the disk stays there."""
        tensors = {k: v.of(rows) if isinstance(v, Stored) else v[rows] for k, v in self.tensors.items()}
        return replace(self, prompts=[self.prompts[i] for i in rows.tolist()], tensors=tensors)

    def valid(self, evaluator: str) -> Tensor:
        """Which candidates [G, N] have finite activations and a finite reward."""
        mask: Tensor = self.tensors["valid"] & self.tensors[f"reward/{evaluator}"].isfinite()
        return mask

    def stages(self, rung: float, taps: Sequence[str] | None = None) -> Iterator[Stage]:
        """All groups at a rung, GROUPS_AT_ONCE of them in a stage; see `stage`."""
        for rows in torch.arange(len(self)).split(GROUPS_AT_ONCE):
            yield self.stage(rows, rung, taps)

    def stage(self, rows: Tensor, rung: float, taps: Sequence[str] | None = None) -> Stage:
        """Candidates of the groups `rows` at a rung, group by group, as they were in the run that made them.

        taps: whose maps to read; None: all that are there. Candidates that are not valid have zeros for maps.
        Raises UsageError for maps that are not there.
        """
        at = f"/{rung:g}"
        seeds, valid = self.tensors["seeds"][rows].tolist(), self.tensors["valid"][rows].flatten()
        groups = zip(rows.tolist(), seeds, strict=True)
        candidates = [Candidate(group, self.prompts[group], seed) for group, mine in groups for seed in mine]
        held = [name for name in self.tensors if name.endswith(at)]
        maps = {}
        for tap in [name[4 : -len(at)] for name in held if name.startswith("map/")] if taps is None else taps:
            if f"map/{tap}{at}" not in held:
                raise UsageError(f"{tap}: there is no map/{tap}{at}; collect with --taps ...,{tap} at this rung")
            whole = self.tensors[f"map/{tap}{at}"][rows].flatten(0, 1)
            maps[tap] = whole.masked_fill(~valid[:, None, None, None], 0).float()
        rewards = {
            name[8 : -len(at)]: self.tensors[name][rows].flatten() for name in held if name.startswith("preview/")
        }
        texts = self.tensors["prompt"][rows].float().repeat_interleave(self.n, 0) if "prompt" in self.tensors else None
        done = completed_steps(rung, self.total_steps) if self.total_steps else 0
        return Stage(
            rung=done / self.total_steps if self.total_steps else rung,
            completed_steps=done,
            total_steps=self.total_steps,
            candidates=candidates,
            maps=maps,
            prompt_embeddings=texts,
            pictures=Previews(self.gallery, candidates, rung) if self.gallery else None,
            asked=rung,
            bases={tap: self.bases[tap] for tap in maps if tap in self.bases},
            preview_rewards=rewards,
        )


def in_memory(table: Table) -> Table:
    """The same groups, all read."""
    everything = torch.arange(len(table))
    return replace(table, tensors={k: v[everything] if isinstance(v, Stored) else v for k, v in table.tensors.items()})


def whole_groups(table: Table, evaluator: str) -> Table:
    """The groups of which every candidate is valid."""
    return table.take(table.valid(evaluator).all(1).nonzero()[:, 0])
