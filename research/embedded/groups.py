"""Stage `collect`: groups of candidates of the finished backbones, with all channels of the taps, for every probe."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import Tap
from probeselect.collect.loop import collect
from probeselect.collect.maker import CollectSettings, ShardMaker, configuration
from probeselect.collect.score import score_shard
from probeselect.data.config import PinnedPrompts
from probeselect.data.dataset import Dataset, pin
from probeselect.data.prompts import Prompt, PromptList
from probeselect.data.table import Table, in_memory, whole_groups
from probeselect.embedded import SHIPPED
from probeselect.embedded.captions import draw_prompts
from probeselect.evaluators.table import load_evaluator
from probeselect.rollout.hooks import Forward, around_forward
from research.embedded.state import quick_arithmetic

STEPS, RUNGS = 20, (0.1, 0.2, 0.4)
EVALUATORS = ("scene-check", "scene-clip")


TAPS = {
    "embedded": ("up_blocks.0.attentions.1", "up_blocks.1.attentions.1", "up_blocks.2.resnets.1", "x0"),
    "embedded-mmdit": (
        "transformer_blocks.1", "transformer_blocks.3", "transformer_blocks.5", "transformer_blocks.6", "x0",
    ),
}  # fmt: skip


def sampling(model: str) -> dict[str, Any]:
    """The pipeline's arguments for a backbone that ships."""
    return {"num_inference_steps": STEPS, **SHIPPED[model].arguments}


def load_source(model: str) -> Backbone:
    """A backbone that ships, in fp32 on the CPU."""
    return load_backbone(model, dtype="fp32", device="cpu")


def collect_split(work: Path, model: str, split: str, count: int) -> None:
    """Groups of `count` prompts of a split: in bf16 but for the test prompts, with judged previews but for training."""
    backbone, exact = load_source(model), split == "test"
    settings = CollectSettings(run=split, rungs=RUNGS, map_channels=256, previews=split != "train")
    prompts = [Prompt(str(i), text) for i, text in enumerate(draw_prompts(count, seed=7, split=split))]
    taps = tuple(Tap.parse(name, backbone.family) for name in TAPS[model])
    pinned = PinnedPrompts(count, PromptList(tuple(prompts), ()).digest)
    dataset = pin(folder_of(work, model, split), configuration(backbone, taps, settings, sampling(model), pinned))
    evaluators = [load_evaluator(name) for name in EVALUATORS]
    with nullcontext() if exact else quick_denoiser(backbone):
        for done in collect(dataset, prompts, ShardMaker(backbone, taps, settings, sampling(model))):
            for evaluator in evaluators:
                score_shard(dataset, evaluator, done.shard)
            line = {"model": model, "split": split, "shards": done.shard + 1, "of": dataset.shard_count}
            print(json.dumps(line), flush=True)


def folder_of(work: Path, model: str, split: str) -> Path:
    return work / "groups" / model / split


@contextmanager
def quick_denoiser(backbone: Backbone) -> Iterator[None]:
    """The denoiser runs in bf16 where that is quick; what it hands on is fp32 again."""

    def wrap(usual: Forward, _eager: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with quick_arithmetic():
                output = usual(*args, **kwargs)
            return pytree.tree_map_only(Tensor, Tensor.float, output)

        return forward

    with around_forward(backbone.denoiser, wrap):
        yield


def finished_pictures(work: Path, model: str, split: str) -> dict[int, Image.Image]:
    """The finished pictures of a split by their seeds."""
    dataset = Dataset(folder_of(work, model, split))
    rows = ((index, row) for index in dataset.done() for row in dataset.rows(index).to_pylist())
    return {row["seed"]: Image.open(dataset.shard(index) / row["image"]).copy() for index, row in rows}


def load_groups(work: Path, model: str, split: str) -> tuple[Table, dict[str, Tensor]]:
    """The whole groups of a split, in memory, and the bases that their maps were projected by."""
    dataset = Dataset(folder_of(work, model, split))
    bases = {tap: torch.from_numpy(dataset.projection(tap)) for tap in TAPS[model]}
    table = dataset.table(EVALUATORS)
    for name in EVALUATORS:
        table = whole_groups(table, name)
    return in_memory(table), bases
