"""This process, or one process a device. They share the folder through its leases, so none is told what to do."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from probeselect.collect.job import CollectJob, Worker
from probeselect.collect.loop import Progress
from probeselect.core.errors import ProbeSelectError


def devices_of(text: str | None) -> list[str]:
    """The devices of "cuda:0,cuda:1"; every GPU of this machine when nothing is said. At least one."""
    if text:
        return [part.strip() for part in text.split(",") if part.strip()]
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{i}" for i in range(count)] if count > 1 else [""]


def run_here(
    job: CollectJob,
    progress: Callable[[int, int], None] = lambda done, planned: None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Progress]:
    """In this process; `progress` and `say` as for `Worker`."""
    yield from Worker(job, progress, say).run()


def run_on_devices(job: CollectJob, devices: Sequence[str]) -> Iterator[Progress]:
    """One process a device; ends when all shards are there, even if some of the processes have died on the way.

    Raises ProbeSelectError with what the first one said that failed, when shards are left that nobody makes.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    for device in devices:
        # A pipe for each: they share no lock, so one that is killed while it speaks silences nobody else.
        heard, said = context.Pipe(duplex=False)
        workers[heard] = context.Process(target=_work, args=(replace(job, device=device), said), daemon=True)
        workers[heard].start()
        said.close()
    seen: set[int] = set()
    failures: list[str] = []
    listening = list(workers)
    try:
        while listening:
            ready = wait(listening)
            for heard in [pipe for pipe in listening if pipe in ready]:
                try:
                    message = heard.recv()
                except (EOFError, OSError):  # it has ended, or was killed in the middle of a word
                    listening.remove(heard)
                    continue
                if isinstance(message, str):
                    failures.append(message)
                elif message.shard not in seen:
                    seen.add(message.shard)
                    yield message
        for worker in workers.values():
            worker.join()
        if len(seen) < job.shards:
            codes = ", ".join(str(worker.exitcode) for worker in workers.values())
            raise ProbeSelectError(failures[0] if failures else f"all workers have ended ({codes})")
    finally:
        for worker in workers.values():
            worker.terminate()


def _work(job: CollectJob, said: Connection) -> None:
    from probeselect.backbones.quiet import quiet_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    quiet_libraries()
    try:
        for progress in Worker(job).run():
            said.send(progress)
    except Exception as error:
        said.send(f"{job.device}: {error}")
        raise SystemExit(1) from error
