"""Noise that a pipeline draws from torch's global generators: found, and made a candidate's own.

A pipeline that does so gives other pictures for the same seed every time. Whether it does is seen from the state of
the generators, not from a list of classes. Here such noise is drawn from global generators that the candidate's seed
has set, and the user's own are put back afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

NOT_REPRODUCIBLE = (
    "{} is not reproducible by seed with these arguments: it draws noise that its generator does not give. Here that "
    "noise comes from the candidate's seed; to make the same picture elsewhere, call torch.manual_seed(SEED) before "
    "the pipeline."
)


class SharedNoise(Exception):
    """A call of several candidates drew noise that belongs to none of them."""


class NoiseWatch:
    """Whether the global generators have been used since they were set."""

    def __init__(self, device: torch.device, seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        self._cuda = device if device.type == "cuda" else None
        if self._cuda is not None:
            with torch.cuda.device(self._cuda):
                torch.cuda.manual_seed(seed)
        self._before = self._states()

    def used(self) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(self._before, self._states(), strict=True))

    def _states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self._cuda is not None:
            states.append(torch.cuda.get_rng_state(self._cuda))
        return states


@contextmanager
def own_noise(device: torch.device, seed: int) -> Iterator[NoiseWatch]:
    """Global generators set by `seed`; as they were before when the block ends."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield NoiseWatch(device, seed)


def step_generators(device: torch.device, seeds: Sequence[int]) -> list[torch.Generator]:
    """For steps that draw from no generator: each gives the noise that torch's own gives after `manual_seed(seed)`."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def stepped(
    step: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], generators: Sequence[torch.Generator]
) -> tuple[Any, bool]:
    """A scheduler's step with generators of our own, and whether it drew noise from them."""
    before = generators[0].get_state()
    output = step(*args, **{**kwargs, "generator": list(generators)})
    return output, not torch.equal(before, generators[0].get_state())
