"""Collection against the stock pipeline, in one run on one machine.

    python benchmarks/collect.py --prompts prompts.txt --out dataset

Collects all prompts. Beside every `--every`-th shard the stock pipeline makes the same number of pictures from the
same prompts, and the seconds of the two are compared: the shard's with everything that collecting does (taps,
projection, encoding, files), scoring excluded. At the end: bytes a candidate, and the time to read one group.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from probeselect.backbones.quiet import quiet_libraries
from probeselect.collect.job import CollectJob, Worker
from probeselect.data.dataset import Dataset
from probeselect.data.prompts import read_prompts
from probeselect.data.sealed import Manifest, read_manifest
from probeselect.data.shards import TENSORS
from probeselect.embedded import SHIPPED

REFERENCE_BYTES = 48 * 48 * 48 * 2  # a candidate's activation at one rung in the published code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=6, help="shards from one stock run to the next")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    quiet_libraries()
    arguments = {"num_inference_steps": options.steps, **SHIPPED["embedded"].arguments}
    job = CollectJob(options.out, read_prompts(options.prompts), arguments=arguments)
    worker = Worker(job)
    dataset, pipe = worker.dataset, worker.maker.backbone.pipe
    pipe.set_progress_bar_config(disable=True)

    def stock(index: int) -> None:
        """The same number of pictures of the same prompts, by the pipeline itself."""
        first = index * job.settings.groups_per_shard
        prompts = job.prompts.prompts[first : first + dataset.groups_of(index)]
        texts = [prompt.text for prompt in prompts for _ in range(job.settings.n)]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(len(texts))]
        pipe(texts, generator=generators, **arguments)

    pairs: list[tuple[Seconds, Seconds]] = []  # of the stock pipeline, and of collecting
    for index in range(dataset.shard_count):
        measured = index % options.every == 1 and not dataset.shard(index).is_dir()  # the first one is for warming up
        if measured and len(pairs) % 2:  # by turns first and second, so that a drift of the machine hits both alike
            collecting, plain = seconds_of(worker.collect_shard, index), seconds_of(stock, index)
        elif measured:
            plain, collecting = seconds_of(stock, index), seconds_of(worker.collect_shard, index)
        else:
            worker.collect_shard(index)
            continue
        pairs.append((plain, collecting))
        line = {"shard": index, "of": dataset.shard_count, "stock": plain, "collecting": collecting}
        print(json.dumps(line | ratios_of(pairs)), flush=True)
    print(json.dumps(ratios_of(pairs) | report(dataset)))


class Seconds(NamedTuple):
    """By the clock, and of the processor: the second does not mind what else the machine does."""

    clock: float
    processor: float


def seconds_of(task: Callable[[int], Any], index: int) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    task(index)
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def ratios_of(pairs: list[tuple[Seconds, Seconds]]) -> dict[str, float]:
    """Images/s of collecting over images/s of the stock pipeline: all runs together, and the median of the pairs."""
    ratios: dict[str, float] = {"runs": len(pairs)}
    for name in Seconds._fields if pairs else ():
        stock, collecting = zip(*((getattr(a, name), getattr(b, name)) for a, b in pairs), strict=True)
        ratios[f"{name}_over_stock"] = sum(stock) / sum(collecting)
        ratios[f"{name}_median"] = statistics.median(a / b for a, b in zip(stock, collecting, strict=True))
    return ratios


def report(dataset: Dataset) -> dict[str, float]:
    """Sizes, and milliseconds to read a group at random."""
    manifests = [read_manifest(dataset.shard(index), Manifest).files for index in dataset.done()]
    candidates = dataset.config.prompts.count * dataset.n
    tensors = sum(files[TENSORS]["bytes"] for files in manifests) / candidates
    everything = sum(entry["bytes"] for files in manifests for entry in files.values()) / candidates
    picks = random.Random(0).sample(range(dataset.config.prompts.count), k=min(500, len(dataset.done()) * 8))
    for index in picks:
        dataset.group(index)  # warm
    began = time.perf_counter()
    for index in picks:
        dataset.group(index)
    return {
        "bytes_per_candidate": round(everything),
        "bytes_of_tensors_per_candidate": round(tensors),
        "bytes_per_candidate_and_rung": round(tensors / len(dataset.rungs)),
        "reference_bytes_per_candidate_and_rung": REFERENCE_BYTES,
        "milliseconds_per_group": 1000 * (time.perf_counter() - began) / len(picks),
    }


if __name__ == "__main__":
    main()
