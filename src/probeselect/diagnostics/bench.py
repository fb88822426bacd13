"""Speed on this machine, as ratios of times taken in one run: an absolute time says more about the machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import X0, TapReader
from probeselect.core.candidates import candidates_of
from probeselect.embedded.captions import draw_prompts
from probeselect.probe.config import Head, ProbeConfig
from probeselect.probe.files import Probe
from probeselect.probe.maps import orthonormal, project
from probeselect.rollout.rollout import Stage, rollout
from probeselect.scorers.table import load_scorer
from probeselect.select.sampler import SelectiveSampler

N, RUNG = 5, 0.2
ARGUMENTS: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0}


def run_bench(prompt_count: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one row per figure: what is compared, both costs (medians of seconds, or counts), and the ratio.

    The ratio of times is the median over rounds, not that of the two medians.
    """
    backbone = load_backbone("embedded", device="cpu")
    prompts = list(draw_prompts(prompt_count, seed=1, split="val"))
    yield from _selection(backbone, prompts, repeats, f"{prompt_count} prompts in shared batches")
    yield from _selection(backbone, prompts[:1], repeats, "one prompt alone")
    yield _resuming(backbone, prompts[:1], repeats)
    yield _scoring(backbone, prompts[0], repeats)
    yield _operations()
    yield from _projection(repeats)


@dataclass(frozen=True)
class Paired:
    """Seconds of tasks that took turns: `rounds[r][t]` of task t in round r. Neighbours in time are compared alone."""

    rounds: Sequence[Sequence[float]]

    def seconds(self, task: int) -> float:
        """The median of one task."""
        return statistics.median(times[task] for times in self.rounds)

    def ratio(self, task: int = 0, reference: int = 1) -> float:
        """The median over rounds of one task's time over another's in the same round."""
        return statistics.median(times[task] / times[reference] for times in self.rounds)


def paired(
    repeats: int,
    *tasks: Callable[[], Any],
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> Paired:
    """Time tasks in rounds, forwards and backwards in turn (A B, B A, A B ...), after one run each to warm up.

    A slow spell of the machine then spoils single rounds, which their median leaves out, and a machine that slows down
    steadily favours neither side.
    """
    for task in tasks if warm_up else ():
        task()
    rounds = []
    for number in range(repeats):
        taken = [0.0] * len(tasks)
        for i in range(len(tasks))[:: -1 if number % 2 else 1]:
            began = clock()
            tasks[i]()
            taken[i] = clock() - began
        rounds.append(taken)
    return Paired(rounds)


def _row(what: str, cost: float, reference: float, unit: str = "seconds", ratio: float | None = None) -> dict[str, Any]:
    return {
        "what": what,
        "cost": round(cost, 5),
        "reference": round(reference, 5),
        "unit": unit,
        "ratio": cost / reference if ratio is None else ratio,
    }


def _compared(what: str, times: Paired, task: int = 0, reference: int = 1) -> dict[str, Any]:
    return _row(what, times.seconds(task), times.seconds(reference), ratio=times.ratio(task, reference))


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

    times = paired(repeats, lambda: sampler(prompts, N, 1, [RUNG], **ARGUMENTS), everything)
    yield _compared(f"5 -> 1 at {RUNG:.0%} over finishing all five, {what} (limit 0.36)", times)


def _resuming(backbone: Backbone, prompts: list[str], repeats: int) -> dict[str, Any]:
    """All five recorded at the rung and resumed, over one uninterrupted rollout of all five."""

    def run(rungs: list[float]) -> None:
        for _ in rollout(backbone, candidates_of(prompts, N), rungs, **ARGUMENTS):
            pass

    times = paired(repeats, lambda: run([RUNG]), lambda: run([]))
    return _compared("five candidates stopped at a rung and resumed, over running through", times)


def _scoring(backbone: Backbone, prompt: str, repeats: int) -> dict[str, Any]:
    """Tap, projection and scoring of five candidates at the rung, over one guided denoiser step of them."""
    scorer = load_scorer("embedded", backbone)
    candidates, taps = candidates_of(prompt, N), tuple(map(backbone.tap, scorer.taps))
    stage: Stage = next(iter(rollout(backbone, candidates, [RUNG], taps=taps, finish=False, **ARGUMENTS)))
    config: Any = backbone.denoiser.config
    latents = torch.randn(2 * N, config.in_channels, config.sample_size, config.sample_size)
    text = torch.randn(2 * N, 24, config.cross_attention_dim)

    def step() -> None:
        with torch.no_grad():
            backbone.denoiser(latents, torch.tensor(500), text)

    def step_and_score() -> None:
        with TapReader(backbone, taps) as reader:
            step()
            maps = {**reader.read(N), X0.name: stage.maps[X0.name]}
        scorer(replace(stage, maps=maps))

    times = paired(max(repeats, 15), step_and_score, step)
    what = f"tap, projection and scoring of {N} candidates over one denoiser step of them (limit 0.25)"
    return _row(what, times.seconds(0) - times.seconds(1), times.seconds(1), ratio=times.ratio() - 1)


def _operations() -> dict[str, Any]:
    """The same at the shape of SD3.5 medium at 1024 px, in counted operations: nothing is computed."""
    with torch.device("meta"):
        denoiser = SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
            pos_embed_max_size=64,
        )
        probe = Probe(
            ProbeConfig(
                backbone="SD3.5 medium",
                denoiser="SD3Transformer2DModel",
                architecture="",
                latent_channels=16,
                taps=("transformer_blocks.20", X0.name),
                tap_channels=(1536, 16),
                projected_channels=(48, 16),
                rungs=(RUNG,),
                heads=(Head("clip-b16", "features", (512,)),),
                prompt_width=4096,
                grid=32,
            )
        )
        maps = {"transformer_blocks.20": torch.empty(N, 1536, 64, 64), X0.name: torch.empty(N, 16, 128, 128)}
        latents, text = torch.empty(2 * N, 16, 128, 128), torch.empty(2 * N, 333, 4096)
        pooled, time_of_all = torch.empty(2 * N, 2048), torch.empty(2 * N)
        with FlopCounterMode(display=False) as step, torch.no_grad():
            denoiser(latents, text, pooled, time_of_all)
        with FlopCounterMode(display=False) as scoring, torch.no_grad():
            encoded, condition = probe.encode(probe.project(maps), torch.empty(N), text[:N].mean(1))
            probe.predict(encoded, condition, "clip-b16")
    what = f"projection and probe over one denoiser step of {N} candidates, SD3.5 medium, operations (limit 0.01)"
    return _row(what, scoring.get_total_flops(), step.get_total_flops(), unit="operations")


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

    times = paired(repeats, fixed, full_svd, eigh)
    yield _compared("per-sample SVD over the fixed projection, 5 x 608 x 48 x 48", times, 1, 0)
    yield _compared("per-sample eigh over the fixed projection, 5 x 608 x 48 x 48", times, 2, 0)
