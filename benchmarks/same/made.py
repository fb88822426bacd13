"""Makes the files that commands are given: a table of scores that any machine makes alike."""

from pathlib import Path

import numpy as np

PROMPTS, CANDIDATES, STEPS = 48, 24, 20


def make_table(path: Path) -> None:
    """Write a score table: rewards from 0 to 1, prompts of unlike difficulty, scores that foresee more step by step."""
    draw = np.random.default_rng(0)
    ease = draw.uniform(0.3, 0.9, (PROMPTS, 1))
    rewards = np.clip(ease + 0.2 * draw.standard_normal((PROMPTS, CANDIDATES)), 0, 1)
    noise = draw.standard_normal((STEPS, PROMPTS, CANDIDATES))
    doubt = 0.4 * (1 - np.arange(1, STEPS + 1) / STEPS)[:, None, None]
    scores = (rewards + doubt * noise).astype(np.float32)
    np.savez(path, score=scores, steps=np.arange(STEPS))
