"""Ways to make a probe, one row each: what the study compares, and among them what may ship."""

from dataclasses import dataclass, field, replace
from typing import Literal

from probeselect.probe.options import TrainOptions
from research.embedded.groups import RUNGS, TAPS
from research.embedded.state import has_quick_bf16

SETTINGS = TrainOptions(epochs=5, bf16=has_quick_bf16())


@dataclass(frozen=True)
class Maps:
    """What is kept of a tap: `channels` by a fixed basis (None: all, the probe learns to mix them), `side` in cells."""

    channels: int | None = 48
    basis: Literal["random", "pca"] = "random"
    side: int = 16


@dataclass(frozen=True)
class Variant:
    """One way to make a probe, and the question that it belongs to. `prompts`: how many to train on, None for all."""

    question: str
    name: str
    taps: tuple[str, ...]
    maps: Maps = Maps()
    kind: Literal["features", "scalar"] = "features"
    evaluators: tuple[str, ...] = ("scene-check",)
    rungs: tuple[float, ...] = RUNGS
    prompts: int | None = 640
    width: int = 48
    settings: TrainOptions = field(default=SETTINGS)
    may_ship: bool = False


def weighted(ranking: float, contrast: float, distillation: float, **changes: object) -> TrainOptions:
    weights = {"ranking_weight": ranking, "contrast_weight": contrast, "distillation_weight": distillation}
    return replace(SETTINGS, **weights, **changes)  # type: ignore[arg-type]


def variants(model: str) -> list[Variant]:
    """All that are tried on a backbone. The first one is the base, from which the others differ in one thing."""
    taps = TAPS[model]
    inner, late = tuple(tap for tap in taps if tap != "x0"), taps[-2]
    base = Variant("base", "base", taps)

    def row(question: str, name: str, **changes: object) -> Variant:
        return replace(base, question=question, name=name, **changes)  # type: ignore[arg-type]

    def scalar(name: str, settings: TrainOptions, **changes: object) -> Variant:
        return row("loss", name, kind="scalar", settings=settings, **changes)

    paper, over_batch = weighted(1.0, 10.0, 0.0), weighted(1.0, 10.0, 0.0, ranking="listwise-batch")
    everything = replace(SETTINGS, epochs=10)
    rows = [
        base,
        row("to ship", "all taps and channels", maps=Maps(None), prompts=None, settings=everything, may_ship=True),
        row("to ship", "x0 alone", taps=("x0",), maps=Maps(None), prompts=None, settings=everything, may_ship=True),
        scalar("the paper's recipe: its tap, scalar head, Eq. 5 + 10 Eq. 6", paper, taps=(late,)),
        scalar("the paper's recipe, over the batch", over_batch, taps=(late,)),
        *(row("tap", tap, taps=(tap,)) for tap in taps),
        row("tap", "activations without x0", taps=inner),
        *(row("prompts", str(count), prompts=count) for count in (160, 320)),
        row("prompts", "all", prompts=None),
    ]
    if model != "embedded":
        return rows
    return [
        *rows,
        row("loss", "distillation alone", settings=weighted(0.0, 0.0, 1.0)),
        row("loss", "distillation + Eq. 5", settings=weighted(0.3, 0.0, 1.0)),
        row("loss", "distillation + Eq. 5, batch", settings=weighted(0.3, 0.0, 1.0, ranking="listwise-batch")),
        row("projection", "random, 8 channels", maps=Maps(8)),
        row("projection", "PCA, 8 channels", maps=Maps(8, "pca")),
        row("projection", "all channels, learned", maps=Maps(None)),
        row("map size", "8 x 8", maps=Maps(side=8)),
        row("size", "width 24", width=24),
        row("heads", "scene-clip alone", evaluators=("scene-clip",)),
        row("heads", "scene-check + scene-clip", evaluators=("scene-check", "scene-clip")),
        scalar("scalar head, Eq. 5", weighted(1.0, 0.0, 0.0)),
        scalar("scalar head, z-scores", weighted(1.0, 0.0, 0.0, ranking="regression")),
        row("rung", "trained at 0.2 alone", rungs=(0.2,)),
        row("annealing", "fine throughout", settings=replace(SETTINGS, temperature=(0.25, 0.25), margin=(0.0, 0.0))),
        row("annealing", "coarse throughout", settings=replace(SETTINGS, temperature=(1.0, 1.0), margin=(0.4, 0.4))),
        row("loss", "distillation + pairwise", settings=weighted(0.3, 0.0, 1.0, ranking="pairwise")),
        row("loss", "distillation + ListNet", settings=weighted(0.3, 0.0, 1.0, ranking="listnet")),
        row("loss", "distillation + z-scores", settings=weighted(0.3, 0.0, 1.0, ranking="regression")),
        row("loss", "Eq. 5 through the formula", settings=weighted(1.0, 0.0, 0.0)),
        scalar("scalar head, Eq. 5 + 0.1 Eq. 6", weighted(1.0, 0.1, 0.0)),
        row("seed", "another seed", settings=replace(SETTINGS, seed=1)),
        row("projection", "PCA, 48 channels", maps=Maps(48, "pca")),
        row("size", "width 96", width=96),
    ]
