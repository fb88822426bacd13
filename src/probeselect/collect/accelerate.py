"""The ranks of `accelerate launch`: each takes its own device, and all share the folder through its leases."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from probeselect.collect.job import CollectJob, Worker
from probeselect.collect.loop import Progress


def run_ranks(job: CollectJob, progress: Callable[[int, int], None], say: Callable[[str], None]) -> Iterator[Progress]:
    """In every rank; the first one alone yields what is to be shown, and calls `progress` and `say`."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # without the word it takes two CPU ranks for two runs
    first = state.is_main_process
    ours = replace(job, device=str(state.device))
    for done in (Worker(ours, progress, say) if first else Worker(ours)).run():
        if first:
            yield done
