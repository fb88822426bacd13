"""What the commands share: options, their checks, the progress bars."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from probeselect.core.errors import UsageError
from probeselect.core.names import DTYPES
from probeselect.embedded import SHIPPED

Model = Annotated[str, typer.Option(help="embedded, embedded-mmdit, a diffusers folder, or a hub id")]
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON and nothing else")]


def pipeline_arguments(
    model: str,
    steps: int,
    guidance: float | None,
    height: int | None,
    width: int | None,
    negative_prompt: str | None,
    least: int = 2,
) -> dict[str, Any]:
    """Keywords of the pipeline: those that were given, and those of a model that ships.

    Raises UsageError for fewer than the `least` steps, or for too many.
    """
    if not least <= steps <= 10_000:
        raise UsageError(f"--steps {steps}: must be from {least} to 10000")
    given = {
        "num_inference_steps": steps, "guidance_scale": guidance, "height": height, "width": width,
        "negative_prompt": negative_prompt,
    }  # fmt: skip
    usual = SHIPPED[model].arguments if model in SHIPPED else {}
    return {**usual, **{name: value for name, value in given.items() if value is not None}}


def fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--rungs {text!r}: give numbers between 0 and 1, like 0.2 or 0.2,0.4") from error


def evaluators_named(text: str) -> list[Callable[..., Any]]:
    """Loaders of the evaluators of "a,b=FOLDER"; a wrong name fails here, before any model is loaded."""
    from functools import partial

    from probeselect.evaluators.table import load_evaluator, parse_evaluators

    return [partial(load_evaluator, name, weights) for name, weights in parse_evaluators(text)]


def check_device(option: str, name: str | None) -> None:
    """Raise UsageError for a device that torch does not know, or that this machine does not have."""
    if name is None:
        return
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UsageError(f"{option} {name!r}: is not a device; give cpu, cuda, cuda:1 or mps") from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise UsageError(f"{option} {name}: torch finds no {kind} device on this machine")


def check_dtype(option: str, name: str | None) -> None:
    """Raises UsageError for another name than those of precisions."""
    if name is not None and name not in DTYPES:
        raise UsageError(f"{option} {name!r}: is not one of {', '.join(DTYPES)}")


def check_scorer(name: str) -> None:
    """Raises UsageError for a preview by an evaluator that nobody knows; what is a probe's place is looked at later."""
    from probeselect.evaluators.table import parse_evaluator

    if name.startswith("preview:"):
        parse_evaluator(name.removeprefix("preview:"))


def once(named: Sequence[tuple[str, T]], option: str) -> dict[str, T]:
    """By name. Raises UsageError for a name that comes twice: a report could not tell them apart."""
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{option} {twice[0]!r}: given twice; each needs a name of its own")
    return dict(named)


def check_source(source: Path) -> None:
    """Raises UsageError for a folder that holds no dataset, and for a file that is not there; torch is not needed."""
    if source.is_dir():
        from probeselect.data.config import read_config

        read_config(source)
    elif not source.is_file():
        raise UsageError(f"{source}: there is no such file or folder")


def check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, must be a folder")


def stop_by(until: float | None, rounds: int | None, confidence: float | None) -> Any:
    """The stopping rule of --until, --rounds and --confidence; None where nothing is asked for."""
    from probeselect.policies.stopping import Until, UntilLikely

    if until is None:
        for option, value in (("--confidence", confidence), ("--rounds", rounds)):
            if value is not None:
                raise UsageError(f"{option} {value:g}: needs --until, the reward that is good enough")
        return None
    if confidence is None:
        return Until(until) if rounds is None else Until(until, rounds)
    if rounds is not None:
        raise UsageError(f"--rounds {rounds}: with --confidence the plan says how many")
    return UntilLikely(until, confidence)
