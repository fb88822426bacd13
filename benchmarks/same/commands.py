"""The commands that both trees run: a row each, in the order in which they run.

Knows options and names of files; does not know how commands are run or compared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROMPT, OTHER, THIRD = "two dogs above a purple book", "a red heart and two dogs", "a yellow car"
MADE_TABLE = "{made}/scores.npz"  # the runner puts its folder of made files in place of {made}
OUT, DATA, DATA_2, PROBE, PLAN, REPORT = "out", "data", "data-2", "probe", "plan.json", "report"


@dataclass(frozen=True)
class Command:
    """What follows `python -m probeselect`, with the options' newest names.

    stdout: the file that standard output is kept in and compared as; "" where it is words for people.
    given: earlier commands whose files are copied into the new folder first. from_before: both trees are given those
    of the old tree, so that the new code reads old files. code: the exit code that it must end with.
    """

    name: str
    words: tuple[str, ...]
    stdout: str = ""
    given: tuple[str, ...] = ()
    from_before: bool = False
    code: int = 0


def commands(tables: Sequence[Path]) -> list[Command]:
    """All commands; `tables` are files of real scores."""
    found = [*_generate(), *_plans(), *_datasets(), *_probes(), *_real_tables(tables), *_bad_use()]
    names = [command.name for command in found]
    assert len({*names}) == len(names), "two commands have one name"
    return found


def chosen(everything: Iterable[Command], only: Sequence[str]) -> list[Command]:
    """Those whose name holds one of `only`, and those whose files they need."""
    everything = list(everything)
    wanted = {command.name for command in everything if any(name in command.name for name in only)}
    for command in reversed(everything):
        if command.name in wanted:
            wanted.update(command.given)
    return [command for command in everything if command.name in wanted]


def _row(name: str, words: str, *prompts: str, **more: object) -> Command:
    """A command of words without spaces in them, and prompts, which have some."""
    first, *rest = words.split()
    return Command(name, (first, *prompts, *rest), **more)  # type: ignore[arg-type]


def _generate() -> list[Command]:
    recorded = f"generate --out {OUT} --record {DATA} --record-share 0.5 -n 4 --evaluate scene-check"
    return [
        _row("generate topk", f"generate --out {OUT} --json", PROMPT, stdout="said.json"),
        _row("generate halving", f"generate --out {OUT} --rungs 0.2,0.4 --policy halving -n 8 -k 2", PROMPT),
        _row("generate all", f"generate --out {OUT} --policy all -n 3 --seed 7", PROMPT),
        _row(
            "generate preview",
            f"generate --out {OUT} --scorer preview:scene-check --evaluate scene-check,scene-clip",
            PROMPT,
        ),
        _row("generate random", f"generate --out {OUT} --scorer random -k 2", PROMPT),
        _row("generate many", f"generate --out {OUT} --rungs 0.05 -n 40 --no-previews", PROMPT),
        _row("generate attention", f"generate --out {OUT} --scorer attention", PROMPT),
        _row("generate fusion", f"generate --out {OUT} --scorer fusion:embedded", PROMPT),
        _row("generate diversity", f"generate --out {OUT} --diversity 0.5 -n 6 -k 3", PROMPT),
        _row("generate mmdit", f"generate --out {OUT} --model embedded-mmdit", PROMPT),
        _row("generate prompts", f"generate --out {OUT} -n 3 --batch-size 4 --no-previews", PROMPT, OTHER, THIRD),
        _row("generate record", recorded, PROMPT, OTHER),
        _row("generate record more", recorded, OTHER, THIRD, given=("generate record",), from_before=True),
        _row(
            "generate until",
            f"generate --out {OUT} --until 0.9 --rounds 3 -n 3 --evaluate scene-check",
            PROMPT,
            OTHER,
        ),
    ]


def _plans() -> list[Command]:
    """Plans of a made table, and pictures by them."""
    timed = f"plan {MADE_TABLE} --budget 60 -k 2 --timing {OUT}/result.json --out {PLAN} --json"
    by_plan = f"generate --out {OUT} --policy {PLAN}"
    likely = "--until 0.8 --confidence 0.7"
    return [
        _row("plan fixed", f"plan {MADE_TABLE} --budget 40 --out {PLAN} --json", stdout="said.json"),
        _row("plan adaptive", f"plan {MADE_TABLE} --budget 50 --adaptive --out {PLAN} --json", stdout="said.json"),
        _row("plan timed", timed, stdout="said.json", given=("generate topk",), from_before=True),
        _row("generate plan", by_plan, PROMPT, given=("plan fixed",)),
        _row("generate adaptive", f"{by_plan} --evaluate scene-check", PROMPT, OTHER, given=("plan adaptive",)),
        _row("generate until likely", f"{by_plan} {likely}", PROMPT, OTHER, given=("plan adaptive",), from_before=True),
        _row("evaluate table", f"evaluate {MADE_TABLE} --out {REPORT} --json", stdout="said.json"),
    ]


def _datasets() -> list[Command]:
    small = "--rungs 0.2 --steps 10 -n 3 --map-channels 77 --image-format webp --run other"
    collect = (
        f"collect --prompts prompts.txt --out {DATA} -n 4 --map-channels 192 --previews --groups-per-shard 8 "
        "--evaluators scene-check --json"
    )
    return [
        _row("prompts few", "prompts --count 6 --seed 3", stdout="few.txt"),
        _row("prompts", "prompts --split test --count 12", stdout="prompts.txt"),
        _row("collect", collect, stdout="said.json", given=("prompts",)),
        _row("collect again", collect, stdout="said.json", given=("collect",), from_before=True),
        _row(
            "collect attention",
            f"collect --prompts few.txt --out {DATA_2} --taps attention,x0 {small} --evaluators scene-check,scene-clip",
            given=("prompts few",),
        ),
        _row("score", f"score {DATA} --evaluators scene-clip --json", stdout="scored.json", given=("collect",)),
        _row("info", f"info {DATA} --json", stdout="info.json", given=("score",), from_before=True),
        _row(
            "evaluate dataset",
            f"evaluate {DATA} --probe embedded --out {REPORT} --network scene-clip",
            given=("score",),
        ),
        _row("evaluate attention", f"evaluate {DATA_2} --out {REPORT}", given=("collect attention",), from_before=True),
        _row("plan dataset", f"plan {DATA} --probe embedded --budget 40 --out {PLAN}", given=("score",)),
        _row(
            "plan dataset adaptive",
            f"plan {DATA} --scorer preview:scene-check --budget 40 --adaptive --out {PLAN}",
            given=("score",),
            from_before=True,
        ),
    ]


def _probes() -> list[Command]:
    train = f"train {DATA} --out {PROBE} --epochs 2 --groups-per-batch 4 --val-share 0.25 --test-share 0.2 --json"
    scalar = f"{train} --kind scalar --ranking pairwise --taps x0 --rungs 0.2,0.4 --evaluators scene-check"
    return [
        _row("train", train, stdout="trained.json", given=("score",)),
        _row("train again", train, stdout="trained.json", given=("train",), from_before=True),
        _row("train scalar", scalar, stdout="trained.json", given=("score",), from_before=True),
        _row("info probe", f"info {PROBE} --json", stdout="info.json", given=("train",)),
        _row(
            "generate own probe", f"generate --out {OUT} --scorer {PROBE}", PROMPT, given=("train",), from_before=True
        ),
    ]


def _real_tables(tables: Sequence[Path]) -> list[Command]:
    """NAME_naft.npz ends before the last step and takes the finished pictures' rewards from NAME_base.npz."""
    found: list[Command] = []
    for table in tables:
        whole = table.with_name(table.name.replace("_naft", "_base"))
        rewards = () if whole == table else ("--rewards", str(whole))
        for budget, how in (("40", ()), ("60", ("--adaptive",))):
            plan = ("plan", str(table), *rewards, "--budget", budget, *how, "--out", PLAN, "--json")
            found.append(Command(f"plan {table.stem} {' '.join(['for', budget, *how])}", plan, "said.json"))
        if rewards:
            against = ("evaluate", str(table), *rewards, "--against", f"plain={whole}", "--out", REPORT)
            found.append(Command(f"evaluate {table.stem}", against))
    return found


def _bad_use() -> list[Command]:
    """Bad use ends with the code 2; what it says may differ."""
    return [
        _row("bad: rounds alone", "generate --rounds 3", PROMPT, code=2),
        _row("bad: no such plan", "generate --policy none.json", PROMPT, code=2),
        _row("bad: no such table", f"evaluate none.npz --out {REPORT}", code=2),
    ]
