"""A small collection for tests, and an evaluator of a known formula."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probeselect.backbones.loading import Backbone
from probeselect.backbones.taps import X0
from probeselect.collect.loop import collect
from probeselect.collect.maker import CollectSettings, ShardMaker, configuration
from probeselect.collect.score import score
from probeselect.data.config import PinnedPrompts
from probeselect.data.dataset import Dataset, pin
from probeselect.data.prompts import Prompt, PromptList
from probeselect.data.table import Table, in_memory

ARGUMENTS = {"num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 3.0}


class Redness:
    """The picture's mean red, minus its mean green."""

    name = "redness"

    def features(self, images):
        return torch.stack([torch.tensor(np.asarray(i.resize((4, 4)))).float().mean((0, 1))[:2] / 255 for i in images])

    def score(self, features, prompts):
        return features[:, 0] - features[:, 1]

    def __call__(self, images, prompts):
        return self.score(self.features(images), prompts)


def prompts_of(*texts: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(text, text) for text in texts)


def maker_of(backbone: Backbone, **settings: Any) -> ShardMaker:
    """Two groups of three candidates a shard, two taps, two rungs; or as `settings` say."""
    small = {"n": 3, "groups_per_shard": 2, "rungs": (0.2, 0.4)}
    return ShardMaker(backbone, (*backbone.taps, X0), CollectSettings(**(small | settings)), ARGUMENTS)


def pinned(maker: ShardMaker, prompts: Sequence[Prompt], folder: Path) -> Dataset:
    listed = PinnedPrompts(len(prompts), PromptList(tuple(prompts), ()).digest)
    return pin(folder, configuration(maker.backbone, maker.taps, maker.settings, maker.arguments, listed))


def table_of(dataset: Dataset) -> Table:
    """All its groups, in memory, with every evaluator that has scored it."""
    return in_memory(dataset.table(dataset.evaluators))


def collected(
    maker: ShardMaker, texts: Sequence[str], folder: Path, evaluators: Sequence[Any] = (), make: Any = None
) -> Dataset:
    """A whole dataset; `make` instead of the maker, where that is to fail."""
    prompts = prompts_of(*texts)
    dataset = pinned(maker, prompts, folder)
    for _ in collect(dataset, prompts, make or maker):
        pass
    for evaluator in evaluators:
        for _ in score(dataset, evaluator):
            pass
    return Dataset(folder)
