"""Every engine gives the same bytes, on the embedded backbone; also when a worker is killed in the middle."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from kill_harness import tree_hash

from probeselect.collect import local
from probeselect.collect.job import CollectJob, Worker
from probeselect.collect.local import devices_of, run_here, run_on_devices
from probeselect.collect.loop import Progress
from probeselect.collect.maker import CollectSettings
from probeselect.collect.ray import RaySettings, run_on_ray
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.data.owners import Owner
from probeselect.data.prompts import read_prompts

ARGUMENTS = {"num_inference_steps": 3, "guidance_scale": 3.0}
TEXTS = ["a dog", "two apples", "a panda on blue", "a red car", "three frogs", "a book above a mug"]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> CollectJob:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    settings = CollectSettings(n=2, rungs=(0.33,), groups_per_shard=1)
    evaluators = (("scene-check", None), ("scene-clip", None))
    folder = tmp_path_factory.mktemp("local") / "dataset"
    return CollectJob(folder, read_prompts(prompts), settings=settings, arguments=ARGUMENTS, evaluators=evaluators)


@pytest.fixture(scope="module")
def expected(job) -> str:
    """The tree hash of a run in this process."""
    done = list(run_here(job, lambda *_: None))
    assert [p.shard for p in done] == list(range(6)) and {p.how for p in done} == {"made"}
    return tree_hash(job.folder)


class Killer(threading.Thread):
    """Kills, in the background, the first process of others that is at work on a shard."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(daemon=True)
        self.lease, self.has_killed = folder / "leases" / name, False
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                owner = Owner.parse(self.lease.read_text().partition("\n")[0])
            except FileNotFoundError:
                owner = None
            if owner is not None and owner.pid != os.getpid():
                os.kill(owner.pid, signal.SIGKILL)
                self.has_killed = True
                return
            time.sleep(0.002)


def test_a_process_a_device_and_one_of_them_killed(job, expected, tmp_path):
    shared = replace(job, folder=tmp_path / "dataset")
    killer = Killer(shared.folder, "shard-00002")
    assert sorted(p.shard for p in run_on_devices(shared, ["cpu", "cpu"])) == list(range(6))
    killer.join()
    assert killer.has_killed
    list(run_here(shared, lambda *_: None))  # what the dead one left to be scored, and to be swept
    assert tree_hash(shared.folder) == expected


def cut_short(job: CollectJob, said: Connection) -> None:
    """A worker of run_on_devices: one is killed in the middle of a word, the other does all the work."""
    if job.device == "dies":
        os.write(said.fileno(), struct.pack("!i", 1000) + b"half of a message")
        os.kill(os.getpid(), signal.SIGKILL)
    for index in range(job.shards):
        said.send(Progress(index, 1, "made"))


def test_a_process_that_dies_while_it_speaks_holds_nobody_up(job, monkeypatch):
    monkeypatch.setattr(local, "_work", cut_short)
    assert [p.shard for p in run_on_devices(job, ["dies", "lives"])] == list(range(job.shards))
    with pytest.raises(ProbeSelectError, match=r"all workers have ended \(-9, -9\)"):
        list(run_on_devices(job, ["dies", "dies"]))


def test_when_all_processes_fail_the_reason_is_said(job, tmp_path):
    broken = replace(job, folder=tmp_path / "dataset", arguments={**ARGUMENTS, "no_such": 1})
    with pytest.raises(ProbeSelectError, match=r"cpu: no_such: StableDiffusionPipeline takes no such argument"):
        list(run_on_devices(broken, ["cpu", "cpu"]))


@pytest.fixture(scope="module")
def ray_directory() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


def test_ray_with_a_killed_worker_gives_the_same_bytes(job, expected, tmp_path, ray_directory):
    shared = replace(job, folder=tmp_path / "dataset")
    killers = [Killer(shared.folder, name) for name in ("shard-00001", "scene-clip.shard-00003")]
    settings = RaySettings(generators=2, scorers=1)  # more than a machine of two cores has
    assert sorted(p.shard for p in run_on_ray(shared, settings)) == list(range(6))
    for killer in killers:
        killer.join()
        assert killer.has_killed
    assert tree_hash(shared.folder) == expected


def test_ray_says_what_an_actor_raised(job, tmp_path, ray_directory):
    broken = replace(job, folder=tmp_path / "dataset", taps=("no.such.module",))
    with pytest.raises(ProbeSelectError, match=r"no\.such\.module"):
        list(run_on_ray(broken, RaySettings()))


def test_ray_needs_actors():
    with pytest.raises(UsageError, match="0 generators"):
        RaySettings(generators=0)


def test_ranks_of_accelerate_share_the_work(job, expected, tmp_path):
    """What `accelerate launch` does for GPUs, torchrun does for CPUs."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "probeselect",
        "collect", "--prompts", str(prompts), "--out", str(tmp_path / "dataset"), "--engine", "accelerate",
        "-n", "2", "--rungs", "0.33", "--groups-per-shard", "1", "--steps", "3",
        "--evaluators", "scene-check,scene-clip",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 of 6 prompts; candidates: 12 ok") == 1  # one rank speaks
    for name in ("summary.json", "summary.png"):
        (tmp_path / "dataset" / name).unlink()
    assert tree_hash(tmp_path / "dataset") == expected


def test_devices():
    assert devices_of("cuda:0, cuda:1") == ["cuda:0", "cuda:1"] and devices_of("cpu") == ["cpu"]
    assert len(devices_of(None)) >= 1


def test_an_evaluator_cannot_be_named_twice(job):
    with pytest.raises(UsageError, match="given twice"):
        replace(job, evaluators=(("scene-check", None), ("scene-check", "folder")))


def test_a_prompt_that_an_evaluator_cannot_judge_is_refused_before_anything_is_made(job, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\na zeppelin\n")
    shared = replace(job, folder=tmp_path / "dataset", prompts=read_prompts(tmp_path / "prompts.txt"))
    with pytest.raises(UsageError, match="zeppelin"):
        list(Worker(shared).run())
    assert not list((tmp_path / "dataset" / "shards").iterdir())
