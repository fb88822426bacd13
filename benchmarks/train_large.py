"""Trains a probe on data that are larger than the memory it may use.

    python benchmarks/train_large.py --out folder --gigabytes 14 --limit 3.5

Makes a dataset of noise with a planted signal, then runs `probeselect train` for one epoch in a process whose address
space is limited (`ulimit -v`), and prints what it was given, what it took and whether it learnt the signal.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from probeselect.data.config import DatasetConfig, PinnedPrompts
from probeselect.data.dataset import Dataset, pin
from probeselect.data.shards import OK, Content, ScoresManifest, write_scores, write_shard

N, CHANNELS, SIDE, GROUPS_PER_SHARD = 5, 2048, 8, 16
BYTES_PER_GROUP = N * CHANNELS * SIDE * SIDE * 2


def make(folder: Path, gigabytes: float) -> Dataset:
    """Maps [16, 5, 2048, 8, 8] whose first channel says the reward; every shard noise of its own."""
    groups = int(gigabytes * 1e9 / BYTES_PER_GROUP)
    config = DatasetConfig(
        prompts=PinnedPrompts(groups, "0"), run="", n=N, rungs=(0.2,), map_channels=CHANNELS, map_side=SIDE,
        previews=False, image_format="png", groups_per_shard=GROUPS_PER_SHARD, batch_size=None, model="m", revision="",
        weights="w", pipeline="P", denoiser="D", architecture="a", latent_channels=4, taps=("tap",),
        scheduler={"class": "S"}, arguments={}, dtype="float32", device="cpu",
    )  # fmt: skip
    dataset, draw = pin(folder, config), np.random.default_rng(0)
    noise = draw.standard_normal((GROUPS_PER_SHARD, N, CHANNELS, SIDE, SIDE)).astype(np.float16)
    for index in range(dataset.shard_count):
        if dataset.shard(index).is_dir():
            continue
        count = dataset.groups_of(index)
        rewards = draw.standard_normal((count, N)).astype(np.float32)
        maps = np.roll(noise[:count], index, axis=2)
        maps[:, :, 0] += rewards[..., None, None].astype(np.float16)
        names = [f"prompt {index * GROUPS_PER_SHARD + g}" for g in range(count)]
        rows = [{"prompt_id": p, "prompt": p, "index": i, "image": "", "status": OK} for p in names for i in range(N)]
        tensors = {"map/tap/0.2": maps, "valid": np.ones((count, N), dtype=bool)}
        tensors |= {"seeds": np.zeros((count, N), dtype=np.int64), "projection/tap": np.eye(CHANNELS, dtype=np.float32)}
        write_shard(dataset.shard(index), Content(tensors, rows))
        scores = [
            {"prompt_id": r["prompt_id"], "index": r["index"], "reward": float(v), "previews": [], "status": OK}
            for r, v in zip(rows, rewards.flat, strict=True)
        ]
        dataset.scores("planted", index).parent.mkdir(parents=True, exist_ok=True)
        about = ScoresManifest(evaluator="planted", weights="", of="")
        write_scores(dataset.scores("planted", index), scores, None, about)
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=14)
    parser.add_argument("--limit", type=float, default=3.5, help="gigabytes of address space")
    options = parser.parse_args()
    dataset = make(options.out / "dataset", options.gigabytes)
    size = sum(path.stat().st_size for path in dataset.folder.rglob("*") if path.is_file())
    limit = int(options.limit * 1e9)
    command = [sys.executable, "-m", "probeselect", "train", str(dataset.folder), "--out", str(options.out / "probe"),
               "--epochs", "1", "--device", "cpu", "--contrast-weight", "0", "--val-share", "0.02",
               "--test-share", "0", "--json"]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    if done.returncode:
        sys.exit(f"the training ended with {done.returncode}")
    report = json.loads(done.stdout)
    print(json.dumps({
        "data_bytes": size, "limit_bytes": limit, "data_over_limit": size / limit,
        "seconds": round(time.monotonic() - began), "samples_per_second": report["samples_per_second"],
        "peak_memory_mib": report["peak_memory_mib"], "spearman": report["figures"]["val"][0]["spearman"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
