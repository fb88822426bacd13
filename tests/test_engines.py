"""Every engine gives the same bytes, on the embedded backbone; also when a worker is killed in the middle."""

import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from kill_harness import ended, forked, tree_hash

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
TEXTS = ["a dog", "two apples", "a panda on blue", "a red car"]


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
    assert [p.shard for p in done] == list(range(job.shards)) and {p.how for p in done} == {"made"}
    return tree_hash(job.folder)


class Killer(threading.Thread):
    """Kills, in the background, the first process of others that is at work on a shard whose lease has such a name."""

    def __init__(self, folder: Path, pattern: str) -> None:
        super().__init__(daemon=True)
        self.leases, self.pattern, self.over, self.has_killed = folder / "leases", pattern, threading.Event(), False
        self.start()

    def run(self) -> None:
        while not self.has_killed and not self.over.wait(0.002):
            for lease in self.leases.glob(self.pattern):
                try:
                    owner = Owner.parse(lease.read_text().partition("\n")[0])
                except FileNotFoundError:
                    continue
                if owner is not None and owner.pid != os.getpid():
                    os.kill(owner.pid, signal.SIGKILL)
                    self.has_killed = True
                    return

    def check(self) -> None:
        self.over.set()
        self.join()
        assert self.has_killed


def test_a_process_a_device_and_one_of_them_killed(job, expected, tmp_path):
    shared = replace(job, folder=tmp_path / "dataset")
    killer = Killer(shared.folder, "shard-*")
    assert sorted(p.shard for p in run_on_devices(shared, ["cpu", "cpu"])) == list(range(job.shards))
    killer.check()
    list(run_here(shared, lambda *_: None))  # what the dead one left to be scored, and to be swept
    assert tree_hash(shared.folder) == expected


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Workers are forks, which import nothing anew: for tests of what they say, not of how they begin."""
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda method: FORK)


FORK = multiprocessing.get_context("fork")


def cut_short(job: CollectJob, said: Connection) -> None:
    """A worker of run_on_devices: one is killed in the middle of a word, the other does all the work."""
    if job.device == "dies":
        os.write(said.fileno(), struct.pack("!i", 1000) + b"half of a message")
        os.kill(os.getpid(), signal.SIGKILL)
    for index in range(job.shards):
        said.send(Progress(index, 1, "made"))


def test_a_process_that_dies_while_it_speaks_holds_nobody_up(job, monkeypatch, at_once):
    monkeypatch.setattr(local, "_work", cut_short)
    assert [p.shard for p in run_on_devices(job, ["dies", "lives"])] == list(range(job.shards))
    with pytest.raises(ProbeSelectError, match=r"all workers have ended \(-9, -9\)"):
        list(run_on_devices(job, ["dies", "dies"]))


def test_when_all_processes_fail_the_reason_is_said(job, tmp_path, at_once):
    broken = replace(job, folder=tmp_path / "dataset", arguments={**ARGUMENTS, "no_such": 1})
    with pytest.raises(ProbeSelectError, match=r"cpu: no_such: StableDiffusionPipeline takes no such argument"):
        list(run_on_devices(broken, ["cpu", "cpu"]))


def test_ray_with_a_killed_worker_gives_the_same_bytes(job, expected, tmp_path):
    shared = replace(job, folder=tmp_path / "dataset")
    killers = [Killer(shared.folder, name) for name in ("shard-*", "scene-clip.shard-*")]
    settings = RaySettings(generators=2, scorers=1)  # more than a machine of two cores has
    assert sorted(p.shard for p in run_on_ray(shared, settings)) == list(range(job.shards))
    for killer in killers:
        killer.check()
    assert tree_hash(shared.folder) == expected


def test_ray_says_what_an_actor_raised(job, tmp_path):
    broken = replace(job, folder=tmp_path / "dataset", taps=("no.such.module",), evaluators=())
    with pytest.raises(ProbeSelectError, match=r"no\.such\.module"):
        list(run_on_ray(broken, RaySettings()))


def test_ray_needs_actors():
    with pytest.raises(UsageError, match="0 generators"):
        RaySettings(generators=0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_ranks_of_accelerate_share_the_work(job, expected, tmp_path):
    """Two forks in the surroundings that `accelerate launch` and torchrun make for their ranks."""
    from accelerate import PartialState

    from probeselect.cli import main

    prompts, port = tmp_path / "prompts.txt", free_port()
    prompts.write_text("\n".join(TEXTS))
    command = [
        "probeselect", "collect", "--prompts", str(prompts), "--out", str(tmp_path / "dataset"), "--engine",
        "accelerate", "-n", "2", "--rungs", "0.33", "--groups-per-shard", "1", "--steps", "3",
        "--evaluators", "scene-check,scene-clip",
    ]  # fmt: skip

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        PartialState._reset_state()  # what an earlier test may have left
        sys.argv = command
        with (tmp_path / f"said-{number}").open("w") as sys.stdout:
            main()

    pids = [forked(lambda number=number: rank(number)) for number in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    first, second = ((tmp_path / f"said-{number}").read_text() for number in range(2))
    assert f"{job.shards} of {job.shards} prompts; candidates: {2 * job.shards} ok" in first
    assert second == ""  # one rank speaks
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
