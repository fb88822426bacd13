"""Speed on this machine, as ratios of times taken in one run: an absolute time says more about the machine."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.core.candidates import candidates_of
from probeselect.embedded.captions import draw_prompts
from probeselect.probe.network import orthonormal, project
from probeselect.sampling.rollout import Stage, rollout
from probeselect.sampling.scorers import load_scorer
from probeselect.sampling.select import SelectiveSampler

N, RUNG = 5, 0.2
ARGUMENTS: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0}


def run_bench(prompt_count: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one row per figure: what is compared, both times in seconds (medians), and their ratio."""
    backbone = load_backbone("embedded", device="cpu")
    prompts = list(draw_prompts(prompt_count, seed=1, split="val"))
    yield from _selection(backbone, prompts, repeats, f"{prompt_count} prompts in shared waves")
    yield from _selection(backbone, prompts[:1], repeats, "one prompt alone")
    yield _resuming(backbone, prompts[:1], repeats)
    yield _scoring(backbone, prompts[0], repeats)
    yield from _projection(repeats)


def _row(what: str, seconds: float, reference: float) -> dict[str, Any]:
    return {
        "what": what,
        "seconds": round(seconds, 5),
        "reference": round(reference, 5),
        "ratio": seconds / reference,
    }


def _paired(repeats: int, *tasks: Callable[[], Any]) -> list[float]:
    """Median seconds of every task; they take turns, so that a slow spell of the machine hits all."""
    times: list[list[float]] = [[] for _ in tasks]
    for task in tasks:
        task()  # warm up
    for _ in range(repeats):
        for taken, task in zip(times, tasks, strict=True):
            began = time.perf_counter()
            task()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]


def _selection(backbone: Backbone, prompts: list[str], repeats: int, what: str) -> Iterator[dict[str, Any]]:
    """Five started and one finished, scoring and decoding included, over the stock pipeline finishing all five."""
    sampler = SelectiveSampler(backbone, "embedded")
    texts = [prompt for prompt in prompts for _ in range(N)]

    def everything() -> None:
        for start in range(0, len(texts), 50):
            part = texts[start : start + 50]
            generators = [torch.Generator("cpu").manual_seed(i % N) for i in range(start, start + len(part))]
            backbone.pipe.set_progress_bar_config(disable=True)
            backbone.pipe(part, generator=generators, **ARGUMENTS)

    select, all_five = _paired(repeats, lambda: sampler(prompts, N, 1, [RUNG], **ARGUMENTS), everything)
    yield _row(f"5 -> 1 at {RUNG:.0%} over finishing all five, {what} (limit 0.36)", select, all_five)


def _resuming(backbone: Backbone, prompts: list[str], repeats: int) -> dict[str, Any]:
    """All five recorded at the rung and resumed, over one uninterrupted rollout of all five."""

    def run(rungs: list[float]) -> None:
        for _ in rollout(backbone, candidates_of(prompts, N), rungs, **ARGUMENTS):
            pass

    interrupted, straight = _paired(repeats, lambda: run([RUNG]), lambda: run([]))
    return _row("five candidates stopped at a rung and resumed, over running through", interrupted, straight)


def _scoring(backbone: Backbone, prompt: str, repeats: int) -> dict[str, Any]:
    """Tap, projection and scoring of five candidates at the rung, over one denoiser step of them."""
    scorer = load_scorer("embedded", backbone)
    candidates = candidates_of(prompt, N)
    stage: Stage = next(iter(rollout(backbone, candidates, [RUNG], taps=scorer.taps, finish=False, **ARGUMENTS)))
    config: Any = backbone.denoiser.config
    latents = torch.randn(2 * N, config.in_channels, config.sample_size, config.sample_size)
    text = torch.randn(2 * N, 24, config.cross_attention_dim)

    def step() -> None:
        with torch.no_grad():
            backbone.denoiser(latents, torch.tensor(500), text)

    scoring, one_step = _paired(max(repeats, 9), lambda: scorer(stage), step)
    return _row("projection and scoring of five candidates over one denoiser step of them", scoring, one_step)


def _projection(repeats: int) -> Iterator[dict[str, Any]]:
    """The fixed projection to 48 channels over two per-sample decompositions, on 5 x 608 x 48 x 48."""
    maps = torch.randn(N, 608, 48, 48)
    basis = orthonormal(48, 608, seed=0)

    def fixed() -> None:
        project(basis, maps)

    def full_svd() -> None:
        for sample in maps:
            torch.linalg.svd(sample.flatten(1), full_matrices=False)

    def eigh() -> None:
        for sample in maps:
            flat = sample.flatten(1)
            torch.linalg.eigh(flat @ flat.T)

    projection, svd, eigen = _paired(repeats, fixed, full_svd, eigh)
    yield _row("per-sample SVD over the fixed projection, 5 x 608 x 48 x 48", svd, projection)
    yield _row("per-sample eigh over the fixed projection, 5 x 608 x 48 x 48", eigen, projection)
