"""The command line: reads options, calls the library, writes files. Progress goes to stderr, results to stdout."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from probeselect.core.candidates import candidates_of
from probeselect.core.errors import ProbeSelectError, UsageError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Model = Annotated[str, typer.Option(help="embedded, a diffusers folder, or a hub id")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON and nothing else")]


@app.callback()
def about() -> None:
    """Start many candidates of a picture, score them early, finish only the promising ones."""


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="one or several prompts")],
    model: Model = "embedded",
    scorer: Annotated[
        str, typer.Option(help="embedded, a probe's folder or hub id, preview:EVALUATOR[=FOLDER], random")
    ] = "embedded",
    n: Annotated[int | None, typer.Option("-n", help="candidates of each prompt; default: the plan's, or 5")] = None,
    k: Annotated[int | None, typer.Option("-k", help="how many to finish; default: the plan's, or 1")] = None,
    rungs: Annotated[str, typer.Option(help="where candidates are scored, as fractions of the steps")] = "0.2",
    policy: Annotated[str, typer.Option(help="topk, halving, all, or a plan.json")] = "topk",
    steps: Annotated[int, typer.Option(help="inference steps")] = 20,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; default: the model's own")] = None,
    height: Annotated[int | None, typer.Option(help="px")] = None,
    width: Annotated[int | None, typer.Option(help="px")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what not to show")] = None,
    seed: Annotated[int, typer.Option(help="candidate i gets seed + i")] = 0,
    evaluate: Annotated[str, typer.Option(help="evaluators of the finished pictures: NAME[=FOLDER],...")] = "",
    tap: Annotated[str | None, typer.Option(help="module path to tap, for unlisted pipelines")] = None,
    batch_size: Annotated[int | None, typer.Option(help="most candidates in one wave; default: as many as fit")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps ...")] = None,
    out: Annotated[Path, typer.Option(help="folder for result.json and the pictures")] = Path("probeselect-out"),
    as_json: Json = False,
) -> None:
    """Generate n candidates of each prompt, stop the weak ones early, finish the best k."""
    from probeselect.sampling.select import SelectiveSampler, check_schedule

    n, k, rung_values, decide = check_schedule(n, k, _fractions(rungs), policy)
    candidates_of(prompts, n, seed=seed)
    _check_steps(steps)
    evaluators = _evaluators_named(evaluate)
    arguments: dict[str, Any] = {
        "num_inference_steps": steps, "guidance_scale": guidance, "height": height, "width": width,
        "negative_prompt": negative_prompt,
    }  # fmt: skip
    _check_folder(out)
    quiet_libraries()

    from probeselect.backbones.loading import load_backbone
    from probeselect.report.result_file import write_results

    backbone = load_backbone(model, dtype=dtype, device=device, tap=tap)
    for line in truncations(backbone.pipe, prompts):
        print(f"probeselect: {line}", file=sys.stderr)
    judges = [load(device=backbone.pipe.device) for load in evaluators]
    if guidance is None and model == "embedded":
        arguments["guidance_scale"] = EMBEDDED_GUIDANCE
    sampler = SelectiveSampler(backbone, scorer, batch_size=batch_size)
    with rows_bar() as progress:
        results = sampler(
            prompts,
            n,
            k,
            rung_values,
            policy=decide,
            seed=seed,
            evaluators=judges,
            previews=True,
            progress=progress,
            **{name: value for name, value in arguments.items() if value is not None},
        )
    content = write_results(results, out, model=model, scorer=sampler.scorer.name, policy=policy)
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    for result in results:
        print_result(result)
    print(f"{out / 'result.json'}, pictures and contact_sheet.png are in {out}")


EMBEDDED_GUIDANCE = 3.0


def truncations(pipe: Any, prompts: list[str]) -> Iterator[str]:
    """Yield a line for every prompt that is longer than a tokenizer of the pipeline takes, and so will be cut."""
    for name, tokenizer in pipe.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        limit = tokenizer.model_max_length
        for i, prompt in enumerate(prompts):
            if (tokens := len(tokenizer(prompt).input_ids)) > limit:
                yield f"prompt {i + 1} has {tokens} tokens, {name} takes {limit}: what is beyond them is not read by it"


@app.command()
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


@app.command()
def info(
    what: Annotated[str, typer.Argument(help="a probe's folder, a model, or nothing")] = "embedded",
    as_json: Json = False,
) -> None:
    """Say what a probe or a model is and what it fits."""
    quiet_libraries()
    from probeselect.report.describe import describe

    fields = describe(what)
    if as_json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name:18} {value}")


@app.command()
def bench(
    prompt_count: Annotated[int, typer.Option("--prompts", help="prompts in the shared waves")] = 10,
    repeats: Annotated[int, typer.Option(help="the median of so many runs")] = 3,
    as_json: Json = False,
) -> None:
    """Measure speed on this machine: ratios of times taken in one run."""
    quiet_libraries()
    from probeselect.report.bench import run_bench

    rows = []
    for row in run_bench(prompt_count, repeats):
        rows.append(row)
        if not as_json:
            print(f"{row['ratio']:>10.4g}  {row['what']}", flush=True)
    if as_json:
        print(json.dumps(rows))


def print_result(result: Any) -> None:
    """A few lines for people: who was kept, what it cost."""
    print(result.prompt)
    for candidate in result.candidates:
        scores = "  ".join(f"{s.score:.3f} at {s.rung:.0%}" for s in candidate.scores)
        fate = "kept" if candidate.kept else f"stopped at step {candidate.completed_steps}"
        rewards = "  ".join(f"{name} {value:.3f}" for name, value in candidate.rewards.items())
        print(f"  seed {candidate.seed:<6} {scores}  {fate}  {rewards}".rstrip())
        for name, reasons in candidate.reasons.items():
            print(f"              {name}: {'; '.join(reasons)}")
    cost = result.cost
    print(f"  {cost.denoiser_rows} of {cost.denoiser_rows_all} denoiser rows ({cost.ratio:.2f}), {cost.seconds:.2f} s")


class rows_bar:
    """Progress on stderr in denoiser rows, with rate and time left; silent when stderr is no terminal."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self.bar: Any = tqdm(unit=" rows", file=sys.stderr, disable=None, leave=False)

    def __enter__(self) -> Callable[[int, int], None]:
        return self.update

    def update(self, done: int, planned: int) -> None:
        self.bar.total = planned
        self.bar.update(done - self.bar.n)

    def __exit__(self, *exception: object) -> None:
        self.bar.close()


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--rungs {text!r}: give numbers between 0 and 1, like 0.2 or 0.2,0.4") from error


def _check_steps(steps: int) -> None:
    if not 2 <= steps <= 10_000:
        raise UsageError(f"--steps {steps}: must be from 2 to 10000")


def _evaluators_named(text: str) -> list[Callable[..., Any]]:
    """Loaders of the evaluators of "a,b=FOLDER"; a wrong name fails here, before any model is loaded."""
    from functools import partial

    from probeselect.evaluators.table import load_evaluator, parse_evaluator

    return [partial(load_evaluator, *parse_evaluator(part)) for part in text.split(",") if part]


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, must be a folder")


def quiet_libraries() -> None:
    """Only our own words on the terminal: diffusers' and transformers' loading bars and notes stay away."""
    import warnings

    import diffusers
    import transformers

    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|huggingface_hub)")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _on_terminate(*_: object) -> None:
    raise SystemExit(143)


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except UsageError as error:
        sys.exit(_say(error, 2))
    except ProbeSelectError as error:
        sys.exit(_say(error, 1))
    except OSError as error:
        sys.exit(_say(error, 1))
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        sys.exit(
            _say(error.format_message() if hasattr(error, "format_message") else error, 2)
        )  # click's own usage errors


def _say(error: object, code: int) -> int:
    text = " ".join(str(error).split())
    print(f"probeselect: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
