"""Makes the files that commands are given: a table of scores that any machine makes alike."""

from pathlib import Path

import numpy as np

PROMPTS, CANDIDATES = 48, 32
STEPS = np.array([1, 3, 5, 7, 19])  # 10 to 40 % of 20 steps, where the shipped probes can score, and the end


def make_table(path: Path) -> None:
    """Write a score table: rewards from 0 to 1, prompts of unlike difficulty, scores that foresee more step by step."""
    draw = np.random.default_rng(0)
    ease = draw.uniform(0.3, 0.9, (PROMPTS, 1))
    rewards = np.clip(ease + 0.2 * draw.standard_normal((PROMPTS, CANDIDATES)), 0, 1)
    noise = draw.standard_normal((len(STEPS), PROMPTS, CANDIDATES))
    doubt = 0.5 * (1 - (STEPS + 1) / (STEPS[-1] + 1))[:, None, None]
    scores = (rewards + doubt * noise).astype(np.float32)  # none is left at the end
    np.savez(path, score=scores, steps=STEPS)
