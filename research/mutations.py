"""Breaks the package in one place at a time and sees whether the tests notice.

    python research/mutations.py                 # all of them, in a copy of the tree; half an hour on two cores
    python research/mutations.py --only rounds   # those whose name holds the word

Prints a line for each: killed by which tests, or survived. Exits with 1 if one survived.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/probeselect")


@dataclass(frozen=True)
class Mutation:
    """One place that is broken: `old` becomes `new` in a file, and these tests should turn red."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # what pytest is given


MUTATIONS = (
    # Those that survived the suite once.
    Mutation("record: maps that are not there", "collect/recorder.py", "(good & whole)", "(good)",
             "tests/test_recording.py"),
    Mutation("adaptive: cap x 100", "policies/search_adaptive.py", "MAX_BUDGETS = 4", "MAX_BUDGETS = 400",
             "tests/test_adaptive.py -k budgets"),
    Mutation("out of memory: prefixes are not rolled back", "rollout/batches.py",
             "self.prefixes.update(before)", "pass", "tests/test_manner.py"),
    Mutation("cost: seconds are not shared", "select/records.py",
             "share = rows / max(tally.denoiser_rows, 1)", "share = 1.0", "tests/test_stream.py -k seconds"),
    Mutation("cost: scoring of earlier rounds is lost", "select/rounds.py",
             "self.seconds_scoring += ", "self.seconds_scoring = ", "tests/test_stream.py -k seconds"),
    Mutation("charts: one cut is chosen by another rung", "evaluation/charts.py",
             "if row.steps == (step,)", 'if row.schedule.endswith("-> 1 at 20%")',
             "tests/test_report.py -k every_curve"),
    Mutation("encoders: what is no tensor is forgotten", "rollout/encoders.py",
             "others = repr([leaf for leaf in leaves if not _is_batch(leaf)])", 'others = ""',
             "tests/test_encoders.py"),
    # The loop of rounds.
    Mutation("rounds: those drawn for the record stop", "select/rounds.py",
             "if c in places or c in anyway]", "if c in places]", "tests/test_recording.py"),
    Mutation("rounds: who waits is sorted the wrong way", "select/rounds.py",
             "self.scores[c], reverse=True)", "self.scores[c])", "tests/test_adaptive.py -k run_as_it_says"),
    Mutation("rounds: everybody who waits is finished", "select/rounds.py",
             "self.waiting = everyone[:finish]", "self.waiting = everyone", "tests/test_adaptive.py -k run_as_it_says"),
    Mutation("rounds: overruled after the fact", "select/rounds.py",
             "verdict.open = False", "verdict.open = True", "tests/test_stream.py -k overruling"),
    Mutation("rounds: a stopped run keeps what has no picture", "select/rounds.py",
             "chosen = [c for c in chosen if c in self.pictures]", "pass", "tests/test_stream.py -k thread"),
    Mutation("rounds: finished pictures are finished again", "select/rounds.py",
             "wanted = {*chosen, *anyway} - self.pictures.keys()", "wanted = {*chosen, *anyway}",
             "tests/test_anytime.py -k good_enough"),
    Mutation("rounds: a flagged preview keeps its score", "select/rounds.py",
             "flagged = [i for i, flags in enumerate(stage.flags) if flags]", "flagged = []",
             "tests/test_pictures.py tests/test_cli_pipelines.py -k 'finite or blacked or flag'"),
    # Stopping rules and policies.
    Mutation("until: a reward that is just reached is not enough", "policies/stopping.py",
             "return measured >= self.reward", "return measured > self.reward",
             "tests/test_anytime.py -k good_enough"),
    Mutation("gain: nothing is expected while too few wait", "policies/stopping.py",
             "return np.where(waiting, gain, np.inf)", "return np.where(waiting, gain, 0)", "tests/test_adaptive.py"),
    Mutation("likely: certain while too few wait", "policies/stopping.py",
             "self.reward), 0.0)", "self.reward), 1.0)", "tests/test_anytime.py -k likely_enough"),
    Mutation("halving: rounds up", "policies/policy.py", "running // 2", "(running + 1) // 2",
             "tests/test_policies.py"),
    Mutation("best first: NaN is best", "policies/policy.py",
             "(1, 0.0) if math.isnan(values[i])", "(-1, 0.0) if math.isnan(values[i])", "tests/test_policies.py"),
    Mutation("tables: the worst are kept", "policies/simulate.py",
             'np.argsort(-values, axis=-1, kind="stable")', 'np.argsort(values, axis=-1, kind="stable")',
             "tests/test_schedules.py tests/test_adaptive.py -k 'policy or replay or schedule'"),
    Mutation("tables: ties favour the first", "policies/simulate.py",
             "np.random.default_rng([seed, p]).permutation(np.flatnonzero(v[p]))", "np.flatnonzero(v[p])",
             "tests/test_schedules.py"),
    Mutation("plans: the last rung is scored twice", "policies/plans.py",
             "return sum((self.n, *self.keep[:-1]))", "return sum((self.n, *self.keep))", "tests/test_planning.py"),
    Mutation("best of rows: nothing between two whole n", "policies/simulate.py",
             "low + rest * (", "low + 0 * (", "tests/test_planning.py tests/test_evaluate.py tests/test_report.py"),
    # Batches and what checks them.
    Mutation("batches: no bound", "rollout/batches.py",
             "self.batch_size or MOST_IN_A_BATCH", "self.batch_size", "tests/test_stream.py -k bounded"),
    Mutation("batches: a stop loses the picture at its last step", "rollout/batches.py",
             "if self.stopping and self._run_now.steps < self._run_now.total_steps:", "if self.stopping:",
             "tests/test_stream.py -k thread"),
    Mutation("batches: a candidate may differ from itself alone", "rollout/batches.py",
             "if not together.of(i, len(", "if False and not together.of(i, len(", "tests/test_manner.py"),
    Mutation("rungs: half down", "core/rungs.py",
             "math.floor(rung * total_steps + 0.5 + ROUNDING)", "math.floor(rung * total_steps + ROUNDING)",
             "tests/test_rungs.py"),
    Mutation("diversity: likeness is liked", "policies/diversity.py",
             "- weight * likeness", "+ weight * likeness", "tests/test_diversity.py"),
)  # fmt: skip


def tried(mutation: Mutation, tree: Path) -> tuple[bool, str]:
    """Whether the tests fail with it, and pytest's last line."""
    file = tree / PACKAGE / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.name}: {mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times")
    file.write_text(text.replace(mutation.old, mutation.new))
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {mutation.tests}"
    try:
        run = subprocess.run(command, shell=True, cwd=tree, capture_output=True, text=True, timeout=900)
    finally:
        file.write_text(text)
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines() or [""]
    if run.returncode not in (0, 1):
        raise SystemExit(f"{mutation.name}: pytest ended with {run.returncode}: {lines[-1]}")
    return run.returncode == 1, lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word of the names")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".venv", ".git", ".mypy_cache", ".ruff_cache", "__pycache__", ".hypothesis")
        shutil.copytree(ROOT, tree, ignore=ignored)
        chosen = [mutation for mutation in MUTATIONS if given.only in mutation.name]
        for mutation in chosen:
            began = time.perf_counter()
            killed, line = tried(mutation, tree)
            survived += not killed
            seconds = time.perf_counter() - began
            print(f"{'killed  ' if killed else 'SURVIVED'}  {mutation.name}: {line} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} killed")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
