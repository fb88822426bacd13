"""One row: a tiny pipeline, a call, and what the sampler makes of it against the stock pipeline.

A row has one of four outcomes, or is WRONG. The stock picture of a candidate is that of a pipeline built anew for it;
nothing of the sampler is asked what it would be.
"""

import itertools
import logging
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from compat.pictures import difference, picture_of
from probeselect import SelectiveSampler
from probeselect.core.errors import ProbeSelectError

EXACT, RESTARTED, NO_SEED, REFUSED = "exact", "restarted, exact", "not reproducible by seed, said", "refused"
OUTCOMES = EXACT, RESTARTED, NO_SEED, REFUSED
WRONG = "WRONG"
SECONDS = 600  # for a row
_DENOISERS = ("transformer", "unet", "decoder", "prior")
_LATE = (
    "was not reached",
    "does not step its own scheduler",
    "cannot be decoded before",
)  # refusals that only a run can find
_MOST_PARTS = 10**6  # of a component


@dataclass
class Ran:
    """What a trial's check is given: the sampler's call as it was made, and what came out."""

    trial: "Trial"
    pipe: Any
    arguments: dict[str, Any]  # as the sampler was given them
    results: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """A call of the sampler, and which stock calls its pictures are to equal.

    build: a new pipeline. prepare: changes it, before the sampler and before each stock call alike.
    arguments: the pipeline's keywords. fresh: more of them, made anew for each pipeline (callbacks).
    call: keywords of SelectiveSampler's call other than n, k, rungs and the pipeline's.
    alone: from the pipeline's keywords, the place among all candidates and the group, those of the stock call.
    check: more that must hold of the sampler's call; a sentence for everything that does not.
    """

    subject: str
    kind: str
    group: str
    build: Callable[[], Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fresh: Callable[[Any], dict[str, Any]] = lambda pipe: {}
    prompt: str | Sequence[str] = "a cat"
    takes_prompt: bool = True
    n: int = 4
    k: int = 2
    rungs: Sequence[float] = (0.4,)
    call: Mapping[str, Any] = field(default_factory=dict)
    scorer: Any = "random"
    batch_size: int | None = None
    prepare: Callable[[Any], Any] = lambda pipe: None
    alone: Callable[[dict[str, Any], int, int], dict[str, Any]] = lambda given, place, group: given
    check: Callable[[Ran], Iterable[str]] = lambda ran: ()
    tolerance: float = 1e-3
    again: bool = False  # a second call of the same sampler is the one that is looked at
    counted: bool = True  # the cost that is told is compared with the rows that the denoiser met
    sound: bool = True  # two seeds must give two pictures
    after: bool = True  # the used pipeline's next stock picture is looked at
    expect: tuple[str, ...] = OUTCOMES

    @property
    def name(self) -> str:
        return f"{self.subject} | {self.kind}"

    def keywords(self, pipe: Any) -> dict[str, Any]:
        given = {"output_type": "np", **self.arguments, **self.fresh(pipe)}
        if not self.takes_prompt or (given.get("prompt", "") is None):
            given.pop("prompt", None)
        return given

    @property
    def gives_prompt(self) -> bool:
        """Whether the stock call gets the prompt too."""
        return self.takes_prompt and self.arguments.get("prompt", "") is not None


@dataclass
class Row:
    """What came of a trial."""

    subject: str
    kind: str
    group: str
    outcome: str
    sentences: list[str] = field(default_factory=list)
    difference: float = 0.0
    steps: int = 0
    steps_all: int = 0
    wave: int = 0
    modules: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    blind: bool = False  # two seeds gave the same picture, so the row shows little

    @property
    def name(self) -> str:
        return f"{self.subject} | {self.kind}"

    def line(self) -> str:
        cost = f"steps {self.steps}/{self.steps_all} wave {self.wave}" if self.steps_all else ""
        blind = " BLIND" if self.blind else ""
        about = " / ".join(self.sentences)
        return f"{self.outcome:8.30}{blind} {self.name:75} {self.difference:.1e} {cost} {self.seconds:.1f}s {about}"


@dataclass
class Met:
    """Rows that the parts of a pipeline's denoisers were called with."""

    rows: Counter[int] = field(default_factory=Counter)

    @property
    def nothing(self) -> bool:
        return not self.rows


@contextmanager
def meeting(pipe: Any) -> Iterator[Met]:
    """Counts by a hook that torch has for all modules, which nothing on the pipeline shows."""
    met, numbers, names = Met(), dict[int, int](), list[str]()
    found = {name: part for name, part in pipe.components.items() if name.startswith(_DENOISERS)}
    for name, part in found.items():
        before = name.startswith("prior") and not all(other.startswith("prior") for other in found)  # the loop
        if isinstance(part, nn.Module) and not before:
            first = _MOST_PARTS * len(names)
            names.append(name)
            numbers |= {id(module): first + i for i, module in enumerate(list(part.modules())[1:])}

    def note(module: nn.Module, args: Any) -> None:
        number = numbers.get(id(module))
        if number is not None:
            met.rows[number] += len(args[0]) if args and isinstance(args[0], torch.Tensor) and args[0].ndim else 1

    hook = nn.modules.module.register_module_forward_pre_hook(note) if numbers else None
    try:
        yield met
    finally:
        if hook is not None:
            hook.remove()


def run(trial: Trial) -> Row:
    """Never raises: what goes wrong is the row's outcome."""
    began = time.perf_counter()
    _quiet()
    previous = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    row = Row(trial.subject, trial.kind, trial.group, WRONG)
    try:
        _run(trial, row)
    except BaseException as error:
        row.outcome = WRONG
        row.sentences.append(f"TRACEBACK {_where(error)}")
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if row.outcome not in (WRONG, *trial.expect):
        row.sentences.append(f"{row.outcome} where {' or '.join(trial.expect)} was expected")
        row.outcome = WRONG
    row.seconds = time.perf_counter() - began
    return row


def _run(trial: Trial, row: Row) -> None:
    pipe = trial.build()
    trial.prepare(pipe)
    ran = Ran(trial, pipe, trial.keywords(pipe))
    prompt = trial.prompt if isinstance(trial.prompt, str) else list(trial.prompt)
    torch.manual_seed(4321)
    before = torch.get_rng_state()
    given = {name: value for name, value in ran.arguments.items() if name != "prompt"}
    try:
        with meeting(pipe) as met:
            sampler = SelectiveSampler(pipe, trial.scorer, batch_size=trial.batch_size)
            for _ in range(1 + trial.again):
                met.rows.clear()
                result = sampler(prompt, n=trial.n, k=trial.k, rungs=trial.rungs, **trial.call, **given)
    except ProbeSelectError as error:
        row.sentences = [str(error)]
        if "\n" in str(error):
            row.sentences.append("an error of several lines")
        elif not met.nothing and not any(late in str(error) for late in _LATE):
            row.sentences.append("refused after steps had been computed")
        elif trial.check is not Trial.check and list(trial.check(ran)):
            row.sentences += trial.check(ran)
        else:
            row.outcome = REFUSED
            if _stock_fails(trial):
                row.sentences.append("(The stock pipeline fails too.)")
        return
    except Exception as error:
        row.sentences = [f"TRACEBACK {_where(error)}"]
        return
    ran.results = [result] if isinstance(prompt, str) else result
    _note_cost(row, ran.results)
    row.sentences = list(dict.fromkeys(note for one in ran.results for note in one.notes))
    moved = [] if torch.equal(before, torch.get_rng_state()) else ["the global generator was moved"]
    complaints = [*moved, *trial.check(ran)]
    outcome, more = _compare(trial, ran, row)
    if trial.counted and outcome in (EXACT, RESTARTED):
        complaints += _untrue_cost(trial, row, met)
    row.outcome = WRONG if complaints else outcome
    row.sentences += [*more, *complaints]


def _compare(trial: Trial, ran: Ran, row: Row) -> tuple[str, list[str]]:
    """The outcome, were there nothing else, and what else to say."""
    kept = [(group, c) for group, result in enumerate(ran.results) for c in result.kept]
    if not kept:
        return WRONG, ["nothing was kept"]
    told = any("not reproducible by seed" in sentence for sentence in row.sentences)
    worst, equal_seeded, stock_differs = 0.0, True, False
    for group, candidate in kept:
        ours = picture_of(candidate.image)
        mine = difference(ours, _stock(trial, candidate, group, 1001))
        worst = max(worst, mine)
        if mine > trial.tolerance and told:
            once, twice = (_stock(trial, candidate, group, seed) for seed in (1001, 1002))
            stock_differs |= difference(once, twice) > trial.tolerance
            seeded = _stock(trial, candidate, group, candidate.seed)
            equal_seeded &= difference(ours, seeded) <= trial.tolerance
    row.difference = worst
    pictures = [picture_of(candidate.image) for _, candidate in kept]
    row.blind = trial.sound and len(pictures) > 1 and difference(pictures[0], pictures[-1]) < 5 * trial.tolerance
    if worst > trial.tolerance:
        if told and stock_differs and equal_seeded:
            return NO_SEED, ["equal under torch.manual_seed"]
        why = "" if not told else " although a note says so;" if not stock_differs else " nor under torch.manual_seed;"
        return WRONG, [f"not the stock picture,{why} off by {worst:.2g}"]
    group, candidate = kept[0]
    after = (
        0.0 if not trial.after else difference(picture_of(candidate.image), _stock(trial, candidate, group, 1001, ran))
    )
    if after > trial.tolerance:
        return WRONG, [f"the pipeline is not as it was before: its next stock picture is off by {after:.2g}"]
    return (RESTARTED if any(result.cost.restarted for result in ran.results) else EXACT), []


def _stock(trial: Trial, candidate: Any, group: int, everyones_seed: int, used: Ran | None = None) -> np.ndarray:
    """The stock picture of one candidate, by a new pipeline or by the one that the sampler has used."""
    pipe = used.pipe if used else trial.build()
    if used is None:
        trial.prepare(pipe)
    first_seed = trial.call.get("seed", 0)
    seeds = trial.call.get("seeds") or list(range(first_seed, first_seed + trial.n))
    place = group * trial.n + list(seeds).index(candidate.seed)
    given = trial.alone(trial.keywords(pipe), place, group)
    if trial.gives_prompt and "prompt" not in given:
        given["prompt"] = candidate.prompt
    generator = torch.Generator("cpu").manual_seed(candidate.seed)
    torch.manual_seed(everyones_seed)
    return picture_of(pipe(generator=generator, **given), whole=True)


def _stock_fails(trial: Trial) -> bool:
    pipe = trial.build()
    trial.prepare(pipe)
    given = {name: value for name, value in trial.keywords(pipe).items() if name != "generator"}
    if trial.gives_prompt and "prompt" not in given:
        given["prompt"] = trial.prompt if isinstance(trial.prompt, str) else list(trial.prompt)
    try:
        pipe(generator=torch.Generator("cpu").manual_seed(0), **given)
    except Exception:
        return True
    return False


def _untrue_cost(trial: Trial, row: Row, met: Met) -> list[str]:
    """Whether a part of the denoiser has met as many rows as the told cost says, one stock call being the measure."""
    pipe = trial.build()
    trial.prepare(pipe)
    given = trial.alone(trial.keywords(pipe), 0, 0)
    if trial.gives_prompt and "prompt" not in given:
        given["prompt"] = trial.prompt if isinstance(trial.prompt, str) else trial.prompt[0]
    with meeting(pipe) as alone:
        pipe(generator=torch.Generator("cpu").manual_seed(0), **given)
    if not alone.rows or not row.steps_all:
        return []
    candidates = trial.n * (1 if isinstance(trial.prompt, str) else len(trial.prompt))
    # Some parts make the same for all of a batch, or run in some steps only: any other part of a component will do.
    pairs: dict[int, set[tuple[int, int]]] = {}
    for part, count in alone.rows.items():
        pairs.setdefault(part // _MOST_PARTS, set()).add((met.rows[part], candidates * count))
    real = {sum(a for a, _ in each) / sum(b for _, b in each) for each in itertools.product(*pairs.values())}
    told = row.steps / row.steps_all
    if any(abs(each - told) < 0.01 for each in real):
        return []
    return [f"cost untrue: {told:.2f} told, {statistics.median(real):.2f} met"]


def _note_cost(row: Row, results: Sequence[Any]) -> None:
    row.steps = sum(result.cost.denoiser_rows for result in results)
    row.steps_all = sum(result.cost.denoiser_rows_all for result in results)
    row.wave = max(result.cost.largest_wave for result in results)
    modules: Counter[str] = Counter()
    for result in results:
        modules.update(result.cost.rows_by_module)
    row.modules = dict(modules) if len(modules) > 1 else {}


def _quiet() -> None:
    from diffusers.utils import logging as of_diffusers

    warnings.filterwarnings("ignore")
    of_diffusers.set_verbosity_error()
    of_diffusers.disable_progress_bar()
    logging.getLogger("probeselect").setLevel(logging.CRITICAL)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({last.filename.split('/')[-1]}:{last.lineno})"


def _late(*_: Any) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")
