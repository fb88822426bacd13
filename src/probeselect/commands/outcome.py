"""What `generate` says of its results: a few lines for people, and what went wrong with the pictures."""

import math
from collections.abc import Sequence
from typing import Any


def print_result(result: Any) -> None:
    """A few lines for people: who was kept, what it cost."""
    print(result.prompt)
    for candidate in result.candidates:
        scores = "  ".join(f"{s.score:.3f} at {s.rung:.0%}" for s in candidate.scores)
        fate = "kept" if candidate.kept else f"stopped at step {candidate.completed_steps}"
        flags = f"flagged: {', '.join(candidate.flags)}" if candidate.flags else ""
        rewards = "  ".join(f"{name} {value:.3f}" for name, value in candidate.rewards.items())
        print("  ".join(part for part in (f"  seed {candidate.seed:<6}", scores, fate, flags, rewards) if part))
        for name, reasons in candidate.reasons.items():
            print(f"              {name}: {'; '.join(reasons)}")
    for made in result.decisions:
        first, last = made.seeds[0], made.seeds[-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        print(f"  round {made.round}, {seeds}: {made.in_words()}")
    cost = result.cost
    print(f"  {cost.denoiser_rows} of {cost.denoiser_rows_all} denoiser rows ({cost.ratio:.2f}), {cost.seconds:.2f} s")


def faults(results: Sequence[Any]) -> tuple[list[str], bool]:
    """Return a line for every prompt with flagged pictures, and whether some prompt has no good picture at all."""
    lines, failed = [], False
    for result in results:
        flagged = [candidate for candidate in result.candidates if candidate.flags]
        if not flagged:
            continue
        kept = [candidate for candidate in result.kept if candidate.flags]
        if kept and len(kept) == len(result.kept):
            failed = True
            reasons = dict.fromkeys(flag for candidate in kept for flag in candidate.flags)
            lines.append(f"no good picture for {result.prompt!r}: {', '.join(reasons)}")
            continue
        told = ", ".join(f"seed {candidate.seed} ({', '.join(candidate.flags)})" for candidate in flagged)
        fate = "others were kept instead" if not kept else "too few others were there to keep"
        lines.append(f"flagged pictures for {result.prompt!r}: {told}; {fate}")
    return lines, failed


def no_reward(results: Sequence[Any]) -> bool:
    """Return whether no evaluator gave a reward to any picture."""
    return not any(
        math.isfinite(reward)
        for result in results
        for candidate in result.candidates
        for reward in candidate.rewards.values()
    )
