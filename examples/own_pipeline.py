"""Any diffusers pipeline object, a scorer and an evaluator of your own as plain functions."""

import numpy as np

from probeselect import SelectiveSampler, Stage, load_backbone

pipe = load_backbone("embedded").pipe  # yours: StableDiffusionXLPipeline.from_pretrained(...).to("cuda")


def colourfulness(pictures, prompts):
    """Hasler and Suesstrunk (SPIE 5007, 2003): spread and strength of the opponent colours."""
    rewards = []
    for picture in pictures:
        red, green, blue = np.asarray(picture.convert("RGB"), dtype=float).transpose(2, 0, 1)
        a, b = red - green, (red + green) / 2 - blue
        rewards.append(np.hypot(a.std(), b.std()) + 0.3 * np.hypot(a.mean(), b.mean()))
    return rewards


def preview_colour(stage: Stage):
    """A scorer sees a Stage: here, the decoded previews of all candidates at the rung."""
    return colourfulness(stage.pictures, stage.prompts)


sampler = SelectiveSampler(pipe, scorer=preview_colour)
result = sampler(
    "a red car", n=4, k=2, rungs=[0.4], evaluators=[colourfulness], num_inference_steps=10, guidance_scale=3.0
)
for candidate in result.kept:
    score, reward = candidate.scores[-1].score, candidate.rewards["colourfulness"]
    print(f"seed {candidate.seed}: score {score:.1f}, reward {reward:.1f}")
print(result.save("colourful"))
