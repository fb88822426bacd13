"""Ray: generator and scorer actors with resources of their own, on one machine or many that share a file system.

The driver deals out shards, one at a time to every actor that is free. Generators rest while the scorers are behind
(backpressure). An actor that dies is started again and its shard dealt out anew; a shard that has taken `DEATHS`
actors with it stops the run, by name.
"""

import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from probeselect.collect.job import CollectJob, Worker, load_judges
from probeselect.collect.loop import Progress
from probeselect.collect.score import score_shard
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.data.config import DatasetConfig
from probeselect.data.dataset import Dataset, pin
from probeselect.evaluators.base import check_prompts

DEATHS = 3
BACKLOG = 2  # shards that may wait for each scorer
RETRY_SECONDS = 0.5  # until one that nobody could make is dealt out again


@dataclass(frozen=True)
class RaySettings:
    """How many actors, and what each is given. Fractions of a GPU share one."""

    generators: int = 1
    scorers: int = 1
    generator_cpus: float = 1.0
    generator_gpus: float = 0.0
    scorer_cpus: float = 1.0
    scorer_gpus: float = 0.0
    address: str | None = None  # of a running cluster; None: one on this machine for the length of the run

    def __post_init__(self) -> None:
        if self.generators < 1 or self.scorers < 1:
            raise UsageError(f"ray: {self.generators} generators and {self.scorers} scorers; at least 1 of each")

    def cpus(self, scoring: bool) -> float:
        """What all actors ask for together."""
        return self.generators * self.generator_cpus + self.scorers * self.scorer_cpus * scoring


class Generator:
    """The actor that makes shards."""

    def __init__(self, job: CollectJob) -> None:
        self.worker = Worker(job)

    def config(self) -> DatasetConfig:
        return self.worker.dataset.config

    def collect(self, index: int) -> Progress | None:
        return self.worker.collect_shard(index)


class Scorer:
    """The actor that scores shards, with every evaluator of the job."""

    def __init__(self, job: CollectJob) -> None:
        self.dataset = Dataset(job.folder)
        self.judges = load_judges(job.evaluators, job.device)
        self.prompts = [prompt.text for prompt in job.prompts.prompts]

    def check(self) -> None:
        """Raises UsageError for a prompt that an evaluator cannot judge."""
        for judge in self.judges:
            check_prompts(judge, self.prompts)

    def score(self, index: int) -> bool:
        return all([score_shard(self.dataset, judge, index) for judge in self.judges])


def run_on_ray(job: CollectJob, settings: RaySettings) -> Iterator[Progress]:
    """Yield every shard of this part once it is made and scored.

    Raises ProbeSelectError when ray is not installed, when a shard kills its actors, or what an actor raised.
    """
    try:
        import ray
    except ImportError as error:
        raise ProbeSelectError("--engine ray needs ray: pip install 'probeselect[ray]'") from error

    job = replace(job, folder=job.folder.resolve())
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # at ray's own 15 they starve beside any other work
    # On this machine every actor is to start, whatever the cores: an actor that waits for one would wait for ever.
    cpus = None if settings.address else max(os.cpu_count() or 1, math.ceil(settings.cpus(bool(job.evaluators))))
    ray.init(
        address=settings.address,
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield from _Driver(ray, job, settings).run()
    except ray.exceptions.RayTaskError as error:
        raise (
            error.cause
            if isinstance(error.cause, ProbeSelectError)
            else ProbeSelectError(" ".join(str(error.cause).split()))
        ) from error
    finally:
        ray.shutdown()


class _Driver:
    """Who is busy with what."""

    def __init__(self, ray: Any, job: CollectJob, settings: RaySettings) -> None:
        self.ray, self.job, self.settings = ray, job, settings
        forever = {"max_restarts": -1, "max_task_retries": 0}
        generator = ray.remote(num_cpus=settings.generator_cpus, num_gpus=settings.generator_gpus, **forever)(Generator)
        scorer = ray.remote(num_cpus=settings.scorer_cpus, num_gpus=settings.scorer_gpus, **forever)(Scorer)
        self.generators = [generator.remote(job) for _ in range(settings.generators)]
        # One of them pins the configuration before anybody else begins.
        self.dataset = pin(job.folder, ray.get(self.generators[0].config.remote()))
        self.scorers = [scorer.remote(job) for _ in range(settings.scorers)] if job.evaluators else []
        ray.get([scorer.check.remote() for scorer in self.scorers[:1]])  # before anything is made
        self.to_make = deque(range(job.part[0], self.dataset.shard_count, job.part[1]))
        self.to_score: deque[Progress] = deque()
        self.deaths: Counter[int] = Counter()
        self.busy: dict[Any, tuple[Any, int | Progress]] = {}  # what is under way: by whom, with what

    def run(self) -> Iterator[Progress]:
        idle_generators, idle_scorers = list(self.generators), list(self.scorers)
        while self.to_make or self.to_score or self.busy:
            while self.to_score and idle_scorers:
                actor, progress = idle_scorers.pop(), self.to_score.popleft()
                self.busy[actor.score.remote(progress.shard)] = actor, progress
            behind = len(self.to_score) >= BACKLOG * max(1, len(self.scorers))
            while self.to_make and idle_generators and not behind:
                actor, index = idle_generators.pop(), self.to_make.popleft()
                self.busy[actor.collect.remote(index)] = actor, index
            ready, _ = self.ray.wait(list(self.busy), timeout=RETRY_SECONDS)
            for reference in ready:
                actor, what = self.busy.pop(reference)
                (idle_scorers if isinstance(what, Progress) else idle_generators).append(actor)
                yield from self._settled(reference, what)
        self.dataset.leases.sweep()

    def _settled(self, reference: Any, what: int | Progress) -> Iterator[Progress]:
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.ActorUnavailableError:
            result = None  # it is being started again
        except self.ray.exceptions.RayActorError as error:
            result = None
            self._count_death(what, error)
        if not result:
            time.sleep(RETRY_SECONDS)
        if isinstance(what, Progress):
            if result:
                yield what
            else:
                self.to_score.append(what)
        elif result is None:  # died, or another process is at it
            self.to_make.append(what)
        elif self.scorers:
            self.to_score.append(result)
        else:
            yield result

    def _count_death(self, what: int | Progress, error: Exception) -> None:
        index = what.shard if isinstance(what, Progress) else what
        self.deaths[index] += 1
        if self.deaths[index] >= DEATHS:
            name = self.dataset.shard(index).name
            raise ProbeSelectError(f"{name}: {DEATHS} actors have died of it ({' '.join(str(error).split())[:300]})")
