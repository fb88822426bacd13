"""Where a scorer is asked: of a backbone that runs, or of data that one has made. Needs no diffusers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probeselect.backbones.loading import Backbone, dtype_named
from probeselect.core.description import Description
from probeselect.core.errors import ProbeSelectError
from probeselect.data.dataset import Dataset
from probeselect.embedded import SHIPPED, shipped_probe
from probeselect.evaluators.base import Evaluator
from probeselect.evaluators.table import load_evaluator, parse_evaluator
from probeselect.probe.files import load_probe
from probeselect.probe.network import ProbeNetwork
from probeselect.rollout.around import execution_device


@dataclass(frozen=True)
class Context:
    """What a scorer may have to know of where it is asked."""

    model: str  # name of the backbone
    about: Description  # what a probe must fit
    check_tap: Callable[[str], object]  # raises UsageError for a tap that cannot be read
    tokenizer: Callable[[], Any]  # loads the backbone's
    bases: Mapping[str, Tensor] = field(default_factory=dict)  # tap -> [P, C] that its stored maps were projected by
    judged: Collection[str] = ()  # evaluators that have judged the previews
    head: str | None = None  # the evaluator whose rewards are to be foreseen; None: the first that a probe predicts
    device: str | torch.device = "cpu"
    evaluator_device: str | torch.device | None = None  # None: the same
    evaluator_dtype: str | torch.dtype | None = None  # None: float32
    probes: Mapping[str, ProbeNetwork] = field(default_factory=dict)  # by name, loaded before

    def probe(self, name: str) -> ProbeNetwork:
        """One of `probes`, the probe that ships for the backbone, or the one in a folder or on the hub."""
        if name in self.probes:
            return self.probes[name]
        return load_probe(shipped_probe(name, self.model) or name).to(self.device)

    def evaluator(self, text: str) -> Evaluator:
        """The evaluator "NAME[=FOLDER]"."""
        name, weights = parse_evaluator(text)
        device, dtype = self.evaluator_device or self.device, dtype_named(self.evaluator_dtype)
        return load_evaluator(name, weights, device=device, dtype=dtype)


def context_of(home: Backbone | Dataset) -> Context:
    """Of a backbone: probes run where it computes, also while its weights are offloaded. Of a dataset: on the CPU."""
    if isinstance(home, Dataset):
        model, judged = home.config.model, home.evaluators if home.config.previews else ()
        bases = {tap: torch.from_numpy(home.projection(tap)) for tap in home.config.taps}
        return Context(model, home.config, home.projection, lambda: tokenizer_of(model), bases, judged)
    tokenizer, device = getattr(home.pipe, "tokenizer", None), execution_device(home.pipe)
    return Context(home.name, home.describe(), home.tap, lambda: tokenizer, device=device)


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a backbone by its name, folder or hub id.

    Raises ProbeSelectError where it cannot be loaded.
    """
    from transformers import AutoTokenizer

    folder = SHIPPED[model].pipeline if model in SHIPPED else Path(model).expanduser()
    try:
        return AutoTokenizer.from_pretrained(folder if folder.is_dir() else model, subfolder="tokenizer")
    except Exception as error:  # whatever the libraries raise over a foreign folder or the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ProbeSelectError(f"attention: cannot load the tokenizer of {model!r}: {reason}") from error
