"""What is to be collected, in words that any process can be told, and the worker that a process makes of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from probeselect.backbones.loading import Backbone, commit_of, default_device, load_backbone
from probeselect.backbones.taps import X0, Tap
from probeselect.backbones.truncation import truncations
from probeselect.collect.loop import Progress, collect, collect_shard
from probeselect.collect.maker import CollectSettings, ShardMaker, configuration
from probeselect.collect.score import score, score_shard
from probeselect.core.candidates import candidates_of
from probeselect.core.errors import UsageError
from probeselect.data.config import PinnedPrompts
from probeselect.data.dataset import Dataset, check_evaluator_name, pin
from probeselect.data.prompts import PromptList
from probeselect.embedded import SHIPPED
from probeselect.evaluators.base import check_prompts
from probeselect.evaluators.table import load_evaluator
from probeselect.probe.config import read_config
from probeselect.rollout.arguments import check_arguments


@dataclass(frozen=True)
class CollectJob:
    """A collection. Everything but `device` and `part` is the same in all processes that work at it."""

    folder: Path
    prompts: PromptList
    model: str = "embedded"
    revision: str | None = None
    taps: tuple[str, ...] = ()  # of the denoiser, "x0", "attention"; none: the default ones
    settings: CollectSettings = field(default_factory=CollectSettings)
    arguments: dict[str, Any] = field(default_factory=dict)  # of the pipeline
    evaluators: tuple[tuple[str, str | None], ...] = ()  # name, weights
    dtype: str | None = None
    device: str | None = None
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        names = [check_evaluator_name(name) for name, _ in self.evaluators]
        if len(set(names)) < len(names):
            raise UsageError(f"--evaluators: {', '.join(names)}: a name is given twice")

    @property
    def shards(self) -> int:
        """How many shards this part has."""
        size = self.settings.groups_per_shard
        return len(range(self.part[0], -(-len(self.prompts.prompts) // size), self.part[1]))


class Worker:
    """One process at work on a job: the loaded models, made when they are first needed."""

    def __init__(
        self,
        job: CollectJob,
        progress: Callable[[int, int], None] = lambda done, planned: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`progress` hears of the steps done on a shard; `say` gets lines for the user."""
        self.job, self.progress, self.say = job, progress, say

    @cached_property
    def maker(self) -> ShardMaker:
        """Raises UsageError for arguments that the pipeline does not take, before anything is made."""
        job = self.job
        backbone = load_backbone(job.model, dtype=job.dtype, device=job.device, revision=job.revision)
        check_arguments(backbone, candidates_of("any", job.settings.n), job.arguments)
        taps = taps_to_collect(backbone, job.taps)
        revision = commit_of(job.model, job.revision)
        return ShardMaker(backbone, taps, job.settings, job.arguments, revision, self.progress)

    @cached_property
    def dataset(self) -> Dataset:
        """The job's dataset, made or gone on with. Raises UsageError where its configuration is another."""
        maker, prompts = self.maker, self.job.prompts
        pinned = PinnedPrompts(len(prompts.prompts), prompts.digest)
        about = configuration(maker.backbone, maker.taps, maker.settings, maker.arguments, pinned, maker.revision)
        return pin(self.job.folder, about)

    @cached_property
    def evaluators(self) -> list[Any]:
        """Raises UsageError for a prompt that one of them cannot judge."""
        judges = load_judges(self.job.evaluators, str(self.maker.backbone.pipe.device))
        for judge in judges:
            check_prompts(judge, [prompt.text for prompt in self.job.prompts.prompts])
        return judges

    def run(self) -> Iterator[Progress]:
        """Collect and score this job's part; yield every shard that is done."""
        dataset, judges = self.dataset, self.evaluators
        for line in truncations(self.maker.backbone.pipe, [prompt.text for prompt in self.job.prompts.prompts]):
            self.say(line)
        for progress in collect(dataset, self.job.prompts.prompts, self.maker, self.job.part):
            for judge in judges:
                score_shard(dataset, judge, progress.shard)
            yield progress
        for judge in judges:  # where another process was at it, wait for that
            for _ in score(dataset, judge, self.job.part):
                pass

    def collect_shard(self, index: int) -> Progress | None:
        """One shard, for engines that deal them out; None while another process is at it."""
        return collect_shard(self.dataset, self.job.prompts.prompts, self.maker, index)


def load_judges(evaluators: Sequence[tuple[str, str | None]], device: str | None) -> list[Any]:
    """Evaluators by (name, weights), on a device; None means the best there is."""
    return [load_evaluator(name, weights, device=device or default_device()) for name, weights in evaluators]


def taps_to_collect(backbone: Backbone, names: Sequence[str] = ()) -> tuple[Tap, ...]:
    """By name; those of the shipped probe for an embedded backbone, else the family's default and the x0-prediction.

    Raises UsageError for one that the denoiser does not have.
    """
    if not names and backbone.name in SHIPPED:
        names = read_config(SHIPPED[backbone.name].probe).taps
    taps = tuple(Tap.parse(name, backbone.family) for name in names) or (*backbone.taps, X0)
    for tap in taps:
        tap.check(backbone.denoiser)
    return taps
