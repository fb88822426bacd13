"""What people give a call: embeddings, latents, negatives, prompts of unlike length, types of output."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tiny import HIDDEN, TINY
from zoo.pictures import mask, picture, rows

from compat.of_zoo import guess_rung, of_family
from compat.pictures import picture_of
from compat.subjects import Subject, subjects
from compat.trial import EXACT, REFUSED, Ran, Trial

ARGUMENTS = "Arguments of a call"
LENGTHS = "Two prompts of unlike length"
OUTPUTS = "Types of output"
N = 4
PROMPTS = ("a cat", "two dogs on a red boat near an old house")

# Subject -> keywords of embeddings for the tiny model, with the width and rows of each.
_EMBEDS: dict[str, dict[str, tuple[int, ...]]] = {
    "SD": {"prompt_embeds": (16, HIDDEN), "negative_prompt_embeds": (16, HIDDEN)},
    "SDXL": {
        "prompt_embeds": (16, 2 * HIDDEN), "negative_prompt_embeds": (16, 2 * HIDDEN),
        "pooled_prompt_embeds": (HIDDEN,), "negative_pooled_prompt_embeds": (HIDDEN,),
    },
    "ControlNet": {"prompt_embeds": (16, HIDDEN), "negative_prompt_embeds": (16, HIDDEN)},
}  # fmt: skip
# Pipeline class -> shape of one candidate's latents.
_LATENTS = {
    "StableDiffusionPipeline": (4, 8, 8), "StableDiffusionXLPipeline": (4, 8, 8), "StableDiffusion3Pipeline": (4, 8, 8),
    "FluxPipeline": (16, 16), "WanPipeline": (16, 3, 2, 2),
}  # fmt: skip


def trials() -> Iterator[Trial]:
    known = subjects()
    for name, embeddings in _EMBEDS.items():
        yield from _embeddings(known[name], embeddings)
    for name in ("SD", "SDXL", "SD3", "FLUX.1", "Wan"):
        yield from _plain(known[name])
        yield from _outputs(known[name])
    yield from _pictures()
    for family, (build, arguments) in TINY.items():
        yield of_family(
            family, build, arguments, "two prompts of unlike length", guess_rung(arguments), prompt=PROMPTS, n=3, k=1,
        )  # fmt: skip
    for name in ("SD", "SDXL", "SD3", "FLUX.1", "Wan", "ControlNet", "img2img"):
        yield known[name].trial("two prompts of unlike length", LENGTHS, prompt=PROMPTS, n=3, k=2)
        yield known[name].trial(
            "two prompts of unlike length, previews", LENGTHS, prompt=PROMPTS, n=3, k=2, call={"previews": True}
        )


def _embeddings(subject: Subject, embeddings: dict[str, tuple[int, ...]]) -> Iterator[Trial]:
    for count, kind in ((1, "one row for all"), (N, "one row a candidate"), (3, "three rows for four")):
        given: dict[str, Any] = {
            name: rows(count, *shape, seed=i) for i, (name, shape) in enumerate(embeddings.items())
        }

        def alone(keywords: dict[str, Any], place: int, group: int, count: int = count) -> dict[str, Any]:
            mine = {n: keywords[n][[place if count == N else 0]] for n in embeddings}
            return {**{k: v for k, v in keywords.items() if k != "prompt"}, **mine}

        yield subject.trial(
            f"prompt embeddings, {kind}", ARGUMENTS, {"prompt": None, **given}, alone=alone,
            expect=(REFUSED,) if count == 3 else (EXACT,),
        )  # fmt: skip
    # One row a prompt, of two prompts.
    given = {name: rows(2, *shape, seed=i) for i, (name, shape) in enumerate(embeddings.items())}

    def of_prompt(keywords: dict[str, Any], place: int, group: int) -> dict[str, Any]:
        return {**keywords, **{n: keywords[n][[group]] for n in embeddings}}

    yield subject.trial(
        "prompt embeddings, one row a prompt", ARGUMENTS, {"prompt": None, **given}, prompt=PROMPTS, n=3, k=1,
        alone=of_prompt, expect=(EXACT,),
    )  # fmt: skip
    negative = {k: v for k, v in given.items() if k.startswith("negative")}
    one = {k: v[:1] for k, v in negative.items()}
    yield subject.trial("negative embeddings alone, one row for all", ARGUMENTS, one)


def _plain(subject: Subject) -> Iterator[Trial]:
    latents = rows(N, *_LATENTS[subject.name])

    def alone(keywords: dict[str, Any], place: int, group: int) -> dict[str, Any]:
        return {**keywords, "latents": keywords["latents"][[place]]}

    yield subject.trial("latents, one a candidate", ARGUMENTS, {"latents": latents}, alone=alone, expect=(EXACT,))
    refused: dict[str, dict[str, Any]] = {
        "latents, one for four": {"latents": latents[:1]},
        "a generator": {"generator": torch.Generator().manual_seed(0)},
        "num_images_per_prompt": {"num_images_per_prompt": 2},
        "num_videos_per_prompt": {"num_videos_per_prompt": 2},
        "an argument that is not there": {"guidance_scael": 3.0},
        "no steps": {"num_inference_steps": 0},
        "a height that does not fit": {"height": 17},
    }
    for kind, more in refused.items():
        yield subject.trial(kind, ARGUMENTS, more, expect=(REFUSED, EXACT) if "height" in kind else (REFUSED,))
    if subject.name == "FluxPipeline":
        return
    yield subject.trial("a negative prompt", ARGUMENTS, {"negative_prompt": "blurred"}, expect=(EXACT,))

    def own(keywords: dict[str, Any], place: int, group: int) -> dict[str, Any]:
        return {**keywords, "negative_prompt": keywords["negative_prompt"][place]}

    yield subject.trial(
        "negative prompts, one a candidate", ARGUMENTS, {"negative_prompt": ["blurred", "dark", "old", ""]}, alone=own,
    )  # fmt: skip

    def of_prompt(keywords: dict[str, Any], place: int, group: int) -> dict[str, Any]:
        return {**keywords, "negative_prompt": keywords["negative_prompt"][group]}

    yield subject.trial(
        "negative prompts, one a prompt", ARGUMENTS, {"negative_prompt": ["blurred", "a very dark old picture"]},
        prompt=PROMPTS, n=3, k=1, alone=of_prompt,
    )  # fmt: skip
    yield subject.trial(
        "negative prompts, three for four", ARGUMENTS, {"negative_prompt": ["a", "b", "c"]}, expect=(REFUSED,)
    )
    yield subject.trial("no guidance", ARGUMENTS, {"guidance_scale": 1.0}, expect=(EXACT,))
    yield subject.trial("guidance 0", ARGUMENTS, {"guidance_scale": 0.0}, expect=(EXACT,))


def _outputs(subject: Subject) -> Iterator[Trial]:
    for kind in ("pil", "np", "pt", "latent"):
        more = {"tolerance": 1.01 / 255} if kind == "pil" else {}
        yield subject.trial(kind, OUTPUTS, {"output_type": kind}, expect=(EXACT,), **more)
        if kind == "latent":
            yield subject.trial(f"{kind}, previews", OUTPUTS, {"output_type": kind}, call={"previews": True})
            yield subject.trial(
                f"{kind}, evaluators", OUTPUTS, {"output_type": kind}, call={"evaluators": [Brightness()]},
                expect=(REFUSED,),
            )  # fmt: skip
        else:
            yield subject.trial(
                f"{kind}, evaluators", OUTPUTS, {"output_type": kind}, call={"evaluators": [Brightness()]},
                check=_rewards_are_of_the_pictures, expect=(EXACT,), **more,
            )  # fmt: skip


class Brightness:
    """An evaluator whose reward anybody can compute: the mean of the values, in [0, 1]."""

    name = "brightness"
    has_features = False

    def __call__(self, images: Any, prompts: Any) -> torch.Tensor:
        return torch.tensor([float(np.asarray(image.convert("RGB")).mean()) / 255 for image in images])


def _rewards_are_of_the_pictures(ran: Ran) -> Iterator[str]:
    for result in ran.results:
        for candidate in result.kept:
            reward, mean = candidate.rewards["brightness"], float(picture_of(candidate.image).mean())
            if not abs(reward - mean) < 1 / 255:
                yield f"reward {reward:.3g} of a picture whose mean is {mean:.3g}"


def _pictures() -> Iterator[Trial]:
    inpaint = subjects()["inpaint"]
    pictures, masks = [picture(0), picture(1)], [mask(), mask().rotate(90)]

    def of_prompt(keywords: dict[str, Any], place: int, group: int) -> dict[str, Any]:
        return {**keywords, "image": pictures[group], "mask_image": masks[group]}

    yield inpaint.trial(
        "a picture and a mask a prompt", ARGUMENTS, {"image": pictures, "mask_image": masks}, prompt=PROMPTS, n=3, k=1,
        alone=of_prompt, expect=(EXACT,),
    )  # fmt: skip
