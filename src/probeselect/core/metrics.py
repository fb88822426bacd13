"""How well scores choose among the seeds of one prompt.

Shapes: P prompts, N candidates per prompt, `scores`, `rewards` and `valid` all [P, N]; `valid` marks the
entries to count (all, when left out), what lies elsewhere is never read. Higher is better for both. A prompt
with fewer than two valid candidates offers no choice and is left out of every figure that is about choosing.
An undefined figure is NaN. Where several candidates share the best score, the choice is one of them at random, and
figures are its expectation: a scorer that says nothing is worth nothing, whatever the order of the candidates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class WithinPrompt:
    """A rank correlation prompt by prompt. Which prompts are used depends on `rewards` and `valid`, never on the
    scores, so the `per_prompt` of two scorers of one table can be subtracted."""

    mean: float
    per_prompt: Floats  # [U], the used prompts in order
    used: Mask  # [P]
    constant_scores: int  # used prompts whose scores are all equal: they count as 0


def within_prompt_spearman(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> WithinPrompt:
    """Spearman's rank correlation (average ranks for ties) of each prompt, and the mean over prompts.

    A prompt whose rewards are all equal, or that has fewer than two valid entries, is not used.
    """
    return _within_prompts(_spearman, scores, rewards, valid)


def within_prompt_kendall(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> WithinPrompt:
    """Kendall's tau-b (Kendall, Biometrika 33, 1945: ties in either leave the norm) of each prompt, and the mean."""
    return _within_prompts(_kendall, scores, rewards, valid)


def pooled_spearman(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Spearman over all valid entries together. For comparison with published figures only: telling easy
    prompts from hard ones already scores high here. NaN where scores or rewards are all equal."""
    s, r, v = _table(scores, rewards, valid)
    return _spearman(s[v], r[v])


def deviations(values: ArrayLike, valid: ArrayLike | None = None) -> Floats:
    """How far every valid entry is from its prompt's mean, prompt after prompt; prompts without a choice left out."""
    x, _, v = _with_a_choice(values, values, valid)
    means = np.where(v, x, 0).sum(axis=1, keepdims=True) / v.sum(axis=1, keepdims=True)
    return (x - means)[v]


def top_k_hit(scores: ArrayLike, rewards: ArrayLike, k: int, valid: ArrayLike | None = None) -> float:
    """Share of prompts that have a candidate of the prompt's best reward among the k best-scored.

    Of candidates that share the k-th score, those that go in are drawn at random. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k = {k}: look at 1 candidate at least")
    s, r, v = _with_a_choice(scores, rewards, valid)
    hits = []
    for row in range(len(s)):
        found, best = s[row, v[row]], r[row, v[row]] == r[row, v[row]].max()
        kth = np.sort(found)[::-1][min(k, len(found)) - 1]
        tied = found == kth
        places = min(k, len(found)) - int((found > kth).sum())
        misses = math.comb(int((tied & ~best).sum()), places) / math.comb(int(tied.sum()), places)
        hits.append(1.0 if best[found > kth].any() else 1 - misses)
    return _mean(np.array(hits))


def ndcg(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Normalised discounted cumulative gain, mean over prompts whose rewards differ; 1 is the true order.

    The gain of a candidate is how far its reward is above the prompt's worst, the discount of place i is log2(i + 1)
    (Jarvelin and Kekalainen, TOIS 20, 2002). Candidates that share a score share the mean discount of their places.
    """
    s, r, v = _with_a_choice(scores, rewards, valid)
    found = []
    for row in range(len(s)):
        order, gains = s[row, v[row]], r[row, v[row]] - r[row, v[row]].min()
        if gains.any():
            discounts = 1 / np.log2(np.arange(len(gains)) + 2)  # [M], of the places
            _, inverse, counts = np.unique(-order, return_inverse=True, return_counts=True)
            shared = np.add.reduceat(discounts, np.cumsum(counts) - counts) / counts
            found.append((gains @ shared[inverse]) / (np.sort(gains)[::-1] @ discounts))
    return _mean(np.array(found))


@dataclass(frozen=True)
class Choices:
    """Of every prompt with a choice: the reward of the best-scored candidate, the best reward and the mean; all [U]."""

    chosen: Floats
    best: Floats
    average: Floats


def choices(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> Choices:
    """What a scorer chooses. `gain_share` is of its sums, so these are enough to bootstrap it."""
    s, r, v = _with_a_choice(scores, rewards, valid)
    best = np.where(v, r, -np.inf).max(axis=1)
    return Choices(_mean_of_best_scored(s, r, v), best, np.where(v, r, 0).sum(axis=1) / v.sum(axis=1))


def gain_share(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Share of the best-of-N gain: (mean chosen - mean all) / (mean best - mean all), means over prompts.

    0 for choosing at random, 1 for a perfect scorer, negative for one that prefers bad candidates.
    """
    made = choices(scores, rewards, valid)
    return _share(made.chosen, made.best, made.average)


def _share(chosen: Floats, best: Floats, average: Floats) -> float:
    possible = _mean(best - average)
    return _mean(chosen - average) / possible if possible else math.nan


@dataclass(frozen=True)
class Figures:
    """How well a scorer chooses, as every report says it; intervals are [low, high], 95 %, over prompts."""

    spearman: float  # within prompts, see `within_prompt_spearman`
    spearman_interval: tuple[float, float]
    pooled_spearman: float
    regret: float  # mean over prompts of the best reward less the chosen one's
    regret_interval: tuple[float, float]
    gain_share: float
    gain_share_interval: tuple[float, float]


def figures(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None = None) -> Figures:
    """The figures of a scorer, with bootstrap intervals."""
    within, made = within_prompt_spearman(scores, rewards, valid), choices(scores, rewards, valid)
    lost, gains = made.best - made.chosen, (made.chosen, made.best, made.average)
    return Figures(
        spearman=within.mean,
        spearman_interval=bootstrap_interval(np.mean, within.per_prompt),
        pooled_spearman=pooled_spearman(scores, rewards, valid),
        regret=_mean(lost),
        regret_interval=bootstrap_interval(np.mean, lost),
        gain_share=_share(*gains),
        gain_share_interval=bootstrap_interval(_share, *gains),
    )


def best_of_by_prompt(n: int, rewards: ArrayLike, valid: ArrayLike | None = None, k: int = 1) -> Floats:
    """The expected mean [P] of the best k rewards of n candidates drawn without replacement; NaN where there are fewer.

    Raises ValueError for n < k.
    """
    if n < k:
        raise ValueError(f"n = {n}: draw at least {k} candidate{'s' if k > 1 else ''}")
    r, _, v = _table(rewards, rewards, valid)
    ordered = np.sort(np.where(v, r, -np.inf), axis=1)  # [P, N], invalid ones first
    counts = v.sum(axis=1)  # [P]
    expected = np.full(len(r), np.nan)
    for m in np.unique(counts[counts >= n]).tolist():
        # The i-th smallest of m is the j-th best of a draw with j - 1 of those above it and n - j of those below.
        ways = [sum(math.comb(m - 1 - i, j) * math.comb(i, n - 1 - j) for j in range(k)) for i in range(m)]
        weights = np.array([count / math.comb(m, n) / k for count in ways])  # [m]
        expected[counts == m] = ordered[counts == m, -m:] @ weights
    return expected


def bootstrap_interval(
    statistic: Callable[..., float], *tables: ArrayLike, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `statistic(*tables)` under resampling of prompts (axis 0 of every table).

    All tables are resampled alike, so a difference of two scorers is paired:
    `bootstrap_interval(lambda a, b, r: gain_share(a, r) - gain_share(b, r), a, b, rewards)`, or faster, for
    anything that is a mean over prompts, `bootstrap_interval(np.mean, x.per_prompt - y.per_prompt)`.
    Resamples in which the statistic is undefined are left out. Raises ValueError for tables that differ in
    length.
    """
    arrays = [np.asarray(table) for table in tables]
    prompts = len(arrays[0])
    if any(len(array) != prompts for array in arrays):
        raise ValueError(f"tables of {[len(array) for array in arrays]} prompts: all must hold the same ones")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(prompts, size=prompts) for _ in range(resamples if prompts else 0))
    values = np.array([statistic(*(array[draw] for array in arrays)) for draw in draws])
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _within_prompts(
    correlation: Callable[[Floats, Floats], float], scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None
) -> WithinPrompt:
    s, r, v = _table(scores, rewards, valid)
    used = np.where(v, r, -np.inf).max(axis=1) > np.where(v, r, np.inf).min(axis=1)  # [P]
    rows = [correlation(s[p, v[p]], r[p, v[p]]) for p in np.flatnonzero(used)]
    per_prompt = np.nan_to_num(np.array(rows, dtype=np.float64))  # [U]
    return WithinPrompt(_mean(per_prompt), per_prompt, used, int(np.isnan(rows).sum()))


def _table(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None) -> tuple[Floats, Floats, Mask]:
    s, r = np.asarray(scores, dtype=np.float64), np.asarray(rewards, dtype=np.float64)  # [P, N]
    v = np.ones(r.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)  # [P, N]
    if not s.shape == r.shape == v.shape or s.ndim != 2:
        raise ValueError(f"scores {s.shape}, rewards {r.shape}, valid {v.shape}: all must be the same [P, N]")
    if not (np.isfinite(s[v]).all() and np.isfinite(r[v]).all()):
        raise ValueError("a valid entry is NaN or infinite: mark it invalid")
    return s, r, v


def _with_a_choice(scores: ArrayLike, rewards: ArrayLike, valid: ArrayLike | None) -> tuple[Floats, Floats, Mask]:
    s, r, v = _table(scores, rewards, valid)
    rows = v.sum(axis=1) > 1  # [P]
    return s[rows], r[rows], v[rows]  # [U, N]


def _mean_of_best_scored(scores: Floats, values: Floats | Mask, valid: Mask) -> Floats:
    """Mean of `values` over the candidates that share the best score, [U]."""
    s = np.where(valid, scores, -np.inf)
    first = s == s.max(axis=1, keepdims=True)  # [U, N]
    return np.where(first, values, 0).sum(axis=1) / first.sum(axis=1)


def _mean(values: NDArray[np.floating] | Mask) -> float:
    return float(values.mean()) if values.size else math.nan


def _spearman(a: Floats, b: Floats) -> float:
    x, y = _centred_ranks(a), _centred_ranks(b)
    norm = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / norm if norm else math.nan


def _kendall(a: Floats, b: Floats) -> float:
    x, y = (np.sign(values[:, None] - values[None, :]) for values in (a, b))  # [M, M]
    norm = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / norm if norm else math.nan


def _centred_ranks(values: Floats) -> Floats:
    """Ranks with ties averaged, minus their mean; exact zeros where all values are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2 - (len(values) + 1) / 2)[inverse]
