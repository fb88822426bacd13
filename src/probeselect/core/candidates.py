"""Candidates: which (prompt, seed) pairs a call makes, in which order.

Knows that a seed belongs to a candidate and that all candidates of one prompt form a group. Does not know
how a candidate becomes an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

from probeselect.core.errors import UsageError

SEED_LIMIT = 2**63  # seeds are signed 64-bit integers in files; torch would alias the negative ones


@dataclass(frozen=True)
class Candidate:
    """One image to be: `group` is the index of its prompt in the call, `seed` starts its own generator."""

    group: int
    prompt: str
    seed: int


def candidates_of(
    prompts: str | Sequence[str], n: int | None = None, seeds: Sequence[int] | None = None, seed: int = 0
) -> list[Candidate]:
    """All candidates of a call, group by group, each group in seed order: `len(prompts) * n` of them.

    Every group gets the same seeds: `seeds` as given, or `seed`, `seed + 1`, ..., `seed + n - 1`. Equal
    prompts stay distinct groups.

    Raises UsageError for no prompt, a prompt no text encoder can read, n < 1, no n and no seeds, an n that
    is not the number of seeds, seeds outside [0, 2**63) and duplicate seeds.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise UsageError("prompts = []: give at least one prompt")
    for group, prompt in enumerate(prompts):
        check_prompt(prompt, f"prompt {group + 1}")
    group_seeds = _seeds(n, seeds, seed)
    return [Candidate(group, prompt, s) for group, prompt in enumerate(prompts) for s in group_seeds]


def check_prompt(prompt: str, where: str) -> None:
    """Raises UsageError, opening with `where`, for a blank prompt, a NUL or text that is not Unicode."""
    if not prompt.strip():
        raise UsageError(f"{where} is empty: give some text")
    encoded = prompt.encode("utf-8", errors="surrogatepass")
    if (offset := encoded.find(b"\0")) >= 0:
        raise UsageError(f"{where} holds a NUL at byte {offset}: remove it")
    try:
        encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not valid UTF-8 at byte {error.start}: re-encode it") from error


def _seeds(n: int | None, seeds: Sequence[int] | None, seed: int) -> list[int]:
    if seeds is None:
        if n is None or n < 1:
            raise UsageError(f"n = {n}: at least 1 candidate per prompt is needed")
        chosen = [seed + i for i in range(n)]
    else:
        chosen = [index(s) for s in seeds]
        if not chosen or n not in (None, len(chosen)):
            raise UsageError(f"n = {n} with {len(chosen)} seeds: give one seed per candidate")
    for s in chosen:
        if not 0 <= s < SEED_LIMIT:
            raise UsageError(f"seed {s}: must be from 0 to 2**63 - 1")
    if len(set(chosen)) < len(chosen):
        twice = next(s for i, s in enumerate(chosen) if s in chosen[:i])
        raise UsageError(f"seed {twice} is given twice: the seeds of one prompt must differ")
    return chosen
