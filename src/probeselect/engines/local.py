"""This process, or one process a device. They share the folder through its leases, so none is told what to do."""

import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from probeselect.core.errors import ProbeSelectError
from probeselect.engines.job import CollectJob, Worker
from probeselect.jobs.collect import Progress

POLL_SECONDS = 1.0


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
    said: Any = context.Queue()
    workers = [context.Process(target=_work, args=(replace(job, device=d), said), daemon=True) for d in devices]
    for worker in workers:
        worker.start()
    seen: set[int] = set()
    failures: list[str] = []
    try:
        while len(seen) < job.shards:
            try:
                message = said.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers) and said.empty():
                    codes = ", ".join(str(worker.exitcode) for worker in workers)
                    raise ProbeSelectError(failures[0] if failures else f"all workers have ended ({codes})") from None
                continue
            if isinstance(message, str):
                failures.append(message)
            elif message.shard not in seen:
                seen.add(message.shard)
                yield message
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()


def _work(job: CollectJob, said: Any) -> None:
    from probeselect.backbones.quiet import quiet_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    quiet_libraries()
    try:
        for progress in Worker(job).run():
            said.put(progress)
    except Exception as error:
        said.put(f"{job.device}: {error}")
        raise SystemExit(1) from error
