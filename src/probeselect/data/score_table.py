"""Score tables from files: what was predicted of candidates along the trajectory, and what their finished pictures got.

An .npz holds `score` [T, P, N], the score of candidate n of prompt p after the 0-based step `steps[t]`; the last row is
the finished picture's reward. Anybody's scores of any model can be judged from such a file.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats
from probeselect.core.score_table import ScorerScores, ScoreTable


def read_score_tables(paths: Mapping[str, Path], rewards_from: Path | None = None) -> ScoreTable:
    """One table of several files, each a scorer by the name it is given; all of one set of prompts and candidates.

    The first file holds the rewards of the finished pictures, or `rewards_from` does; the others may hold them too, and
    then they must be the same. Candidates that one file lacks count in none. Raises UsageError as `read_score_table`
    does, and where no file is given.
    """
    if not paths:
        raise UsageError("score tables: give at least one file")
    (first, path), *others = paths.items()
    base = read_score_table(path, rewards_from)
    tables = {first: base} | {name: read_score_table(other, rewards_from or path) for name, other in others}
    valid = np.logical_and.reduce([table.valid for table in tables.values()])
    return replace(base, valid=valid, scorers=[replace(t.scorers[0], name=name) for name, t in tables.items()])


def read_score_table(path: Path, rewards_from: Path | None = None) -> ScoreTable:
    """The table of one file; where it has no finished pictures, their rewards are the last row of `rewards_from`.

    The scorer is named after the file, the evaluator after the one with the rewards. Candidates of a prompt that are
    alike in every row are one: all but the first are not valid, nor is one with an entry that is not finite. Raises
    UsageError that names the file and what would be right.
    """
    steps, scores = _read(path)
    if rewards_from is None:
        if len(steps) < 2:
            raise UsageError(f"{path}: one row alone; there must be scores and, last, the finished pictures' rewards")
        total, rewards = steps[-1] + 1, scores[-1]
        steps, scores = steps[:-1], scores[:-1]
    else:
        final, others = _read(rewards_from)
        total, rewards = final[-1] + 1, others[-1]
        if rewards.shape != scores.shape[1:]:
            raise UsageError(f"{path}: {scores.shape[1:]} prompts and candidates, {rewards_from} has {rewards.shape}")
        if steps[-1] == total - 1:  # the finished pictures again: no prediction
            if not np.array_equal(scores[-1], rewards, equal_nan=True):
                raise UsageError(f"{path}: its finished pictures got other rewards than those of {rewards_from}")
            steps, scores = steps[:-1], scores[:-1]
        if not steps or steps[-1] >= total:
            raise UsageError(f"{path}: no score before step {total - 1}, with which {rewards_from} ends, or later ones")
    valid = np.isfinite(scores).all(0) & np.isfinite(rewards) & ~_repeated(scores, rewards)
    if not (valid.sum(1) > 1).any():
        raise UsageError(f"{path}: no prompt has two different candidates, so there is nothing to choose between")
    scorer = ScorerScores(path.stem, dict(zip(steps, scores, strict=True)))
    return ScoreTable((rewards_from or path).stem, rewards, valid, total, [scorer])


def _read(path: Path) -> tuple[tuple[int, ...], Floats]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"score", "steps"} - set(file.files)
            if missing:
                raise UsageError(f"{path}: holds {_listed(file.files)}, where `score` and `steps` are needed")
            scores, steps = file["score"].astype(np.float64), file["steps"]
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path}: is no .npz of plain arrays ({' '.join(str(error).split())})") from error
    if scores.ndim != 3 or not all(scores.shape):
        raise UsageError(f"{path}: score is {scores.shape}, must be [steps, prompts, candidates], none of them 0")
    if steps.shape != scores.shape[:1] or not np.issubdtype(steps.dtype, np.integer):
        raise UsageError(f"{path}: steps is {steps.shape} of {steps.dtype}, must be {scores.shape[0]} whole numbers")
    if steps[0] < 0 or (np.diff(steps) <= 0).any():
        raise UsageError(f"{path}: steps {_listed(steps.tolist())} must rise from 0 or more")
    return tuple(steps.tolist()), scores


def _repeated(scores: Floats, rewards: Floats) -> NDArray[np.bool_]:
    """Which candidates [P, N] are, in every row, like an earlier one of their prompt."""
    repeated = np.ones(rewards.shape, dtype=bool)
    for p in range(len(rewards)):
        rows = np.concatenate([scores[:, p], rewards[None, p]]).T  # [N, T + 1]
        repeated[p, np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) or "nothing"  # type: ignore[call-overload]
