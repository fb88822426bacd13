"""The rows of report.json, typed. Tables and charts choose among them by field.

A field with a heading is a column of the page's table. NAME_interval is the 95 % interval of NAME, [low, high], by
bootstrap over prompts. A figure that is not defined is NaN here and null in the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

Interval = tuple[float, float]
# best of n: all are finished. cut: a scorer chooses once; cuts: at several rungs. oracle: the rewards choose, once.
Kind = Literal["best of n", "cut at random", "cut", "cuts", "oracle"]


@dataclass(frozen=True)
class Scale:
    """Mean reward of all candidates and of each prompt's best; the pooled Spearman of a constant for every prompt."""

    mean: float
    best: float
    pooled_of_a_constant: float


@dataclass(frozen=True)
class ChoosingRow:
    """How well a scorer chooses after one step; see `core.metrics` for the figures."""

    scorer: Annotated[str, "scorer"]
    step: int  # 0-based
    rung: Annotated[float, "rung"]
    spearman: Annotated[float, "Spearman within"]
    spearman_interval: Interval
    pooled_spearman: Annotated[float, "pooled Spearman"]
    regret: Annotated[float, "regret"]
    regret_interval: Interval
    gain_share: Annotated[float, "share of the gain"]
    gain_share_interval: Interval
    kendall: Annotated[float, "Kendall within"]
    constant_prompts: Annotated[int, "prompts without a choice"]  # whose scores are all equal
    top1: Annotated[float, "best is 1st"]
    top2: Annotated[float, "best in first 2"]
    ndcg: Annotated[float, "NDCG"]


@dataclass(frozen=True)
class PairedRow:
    """By how much a scorer is ahead of another at a rung, prompt by prompt."""

    scorer: Annotated[str, "scorer"]
    over: Annotated[str, "over"]
    rung: Annotated[float, "rung"]
    spearman: Annotated[float, "Spearman within"]
    spearman_interval: Interval
    reward: Annotated[float, "reward of the chosen"]  # of the chosen
    reward_interval: Interval


@dataclass(frozen=True)
class ComputeRow:
    """What a schedule earns and costs: of `n` candidates `keep[r]` go on after the 0-based step `steps[r]`."""

    scorer: Annotated[str, "scorer"]
    schedule: Annotated[str, "schedule"]  # in words
    kind: Kind
    n: int
    steps: tuple[int, ...]
    rungs: tuple[float, ...]
    keep: tuple[int, ...]
    rows: Annotated[int, "rows"]  # steps of the denoiser, summed over the candidates of a prompt
    prompts: Annotated[int, "prompts"]  # with enough candidates
    reward: Annotated[float, "reward"]
    reward_interval: Interval
    lead: Annotated[float, "over best-of-n"]  # over best-of-n for the same rows
    lead_interval: Interval
    seconds: Annotated[float | None, "seconds"]  # where the scorer was timed


@dataclass(frozen=True)
class CalibrationRow:
    """Bins of equally many candidates by rising score: mean score, mean reward, and the middle 80 % of it."""

    scorer: str
    rung: float
    score: Sequence[float]
    reward: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class StripRow:
    """One prompt: the rewards of its candidates, and of the one that each scorer chooses."""

    prompt: str
    rewards: Sequence[float]
    chosen: Mapping[str, float]


@dataclass(frozen=True)
class EvaluatorRow:
    """How well a scorer foresees one of several evaluators at a rung."""

    evaluator: Annotated[str, "evaluator"]
    scorer: Annotated[str, "scorer"]
    rung: Annotated[float, "rung"]
    spearman: Annotated[float, "Spearman within"]
    spearman_interval: Interval
    pooled_spearman: Annotated[float, "pooled Spearman"]
    constant: Annotated[float, "pooled, of a constant"]  # the pooled Spearman of a constant for every prompt


@dataclass(frozen=True)
class KeptRow:
    """What an evaluator says of the pictures that one way of choosing keeps."""

    kept_by: Annotated[str, "kept by"]
    evaluator: Annotated[str, "judged by"]
    all: Annotated[float, "mean of all"]
    kept: Annotated[float, "mean of the kept"]
    difference: Annotated[float, "kept - all"]
    difference_interval: Interval
    share: Annotated[float, "share of its best"]  # of what choosing by the evaluator itself would gain


@dataclass(frozen=True)
class LeakRow:
    """Whether a scorer that cannot see a candidate knows something of it: any skill within prompts is a leak."""

    probe: Annotated[str, "scorer"]
    check: Annotated[str, "it is"]
    rung: Annotated[float, "rung"]
    spearman: Annotated[float, "Spearman within"]
    standard_error: Annotated[float, "standard error"]
    leak: Annotated[bool, "leak"]


@dataclass(frozen=True)
class DistanceRow:
    """How far the pictures that a scorer keeps are from all pictures, by a network's features."""

    kept_by: Annotated[str, "kept by"]
    network: Annotated[str, "network"]
    pictures: Annotated[int, "pictures"]
    fid: Annotated[float, "FID"]
    kid: Annotated[float, "KID"]
