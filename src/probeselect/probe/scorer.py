"""A probe as a scorer: of a live run, of stored data while it is trained and judged, and at release."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage
from probeselect.evaluators.base import check_prompts
from probeselect.probe.network import ProbeNetwork


class ProbeScorer:
    """What a probe predicts for one of its evaluators, `head`; None: its first. Raises UsageError for any other."""

    previews = False

    def __init__(self, probe: ProbeNetwork, head: str | None = None, name: str = "probe") -> None:
        self.probe, self.name, self.taps = probe, name, probe.config.taps
        self.head = head or probe.config.default_head
        heads = [each.evaluator for each in probe.config.heads]
        if self.head not in heads:
            raise UsageError(f"probe {name}: predicts {', '.join(heads)}, not {self.head}")
        self.formula = probe.formula(self.head)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        check_prompts(self.formula, prompts)

    def check_rungs(self, rungs: Sequence[float]) -> None:
        for rung in rungs:
            self.probe.check_rung(rung)

    def check_bases(self, bases: Mapping[str, Tensor]) -> None:
        """Raises UsageError for maps that were projected by another basis [P, C] than the probe was trained with."""
        for tap in self.taps:
            mine = self.probe.basis(tap).cpu()
            theirs = bases.get(tap, mine)
            if theirs.shape != mine.shape:
                raise UsageError(
                    f"the data hold {len(theirs)} channels of {tap}, and probe {self.name} reads {len(mine)}; "
                    f"collect with --map-channels {max(self.probe.config.projected_channels)}"
                )
            if not torch.allclose(theirs, mine, atol=1e-3):  # a probe's file holds fp16
                raise UsageError(f"maps of {tap} were projected by another basis than probe {self.name} reads")

    def __call__(self, stage: Stage) -> Tensor:
        self.check_bases(stage.bases)
        with torch.no_grad():
            predicted = self.probe.predict(*self.probe.encode_stage(stage), self.head)
            return predicted if self.formula is None else self.formula.score(predicted, stage.prompts)
