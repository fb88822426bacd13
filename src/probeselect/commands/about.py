"""`probeselect prompts`, `info` and `bench`: what there is, and how fast it is."""

import json
from typing import Annotated

import typer

from probeselect.commands.options import Json
from probeselect.commands.registry import command
from probeselect.core.errors import UsageError


@command("About")
def prompts(
    count: Annotated[int, typer.Option(help="how many")] = 100,
    seed: Annotated[int, typer.Option(help="other prompts for another seed")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test; a hash of the text decides")] = "train",
) -> None:
    """Print prompts of the embedded backbone's scene grammar, one a line."""
    from probeselect.embedded.captions import draw_prompts

    if count < 1:
        raise UsageError(f"--count {count}: must be at least 1")
    for text in draw_prompts(count, seed, split):
        print(text)


@command("About")
def info(
    what: Annotated[str, typer.Argument(help="a probe's folder, a dataset, a model, or nothing")] = "embedded",
    as_json: Json = False,
) -> None:
    """Say what a probe, a dataset or a model is and what it fits."""
    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.diagnostics.describe import describe

    quiet_libraries()
    fields = describe(what)
    if as_json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name:18} {value}")


@command("About")
def bench(
    prompt_count: Annotated[int, typer.Option("--prompts", help="prompts in the shared batches")] = 10,
    repeats: Annotated[int, typer.Option(help="the median of so many runs")] = 3,
    as_json: Json = False,
) -> None:
    """Measure speed on this machine: ratios of times taken in one run."""
    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.diagnostics.bench import run_bench

    quiet_libraries()
    rows = []
    for row in run_bench(prompt_count, repeats):
        rows.append(row)
        if not as_json:
            print(f"{row['ratio']:>10.4g}  {row['what']}", flush=True)
    if as_json:
        print(json.dumps(rows))
