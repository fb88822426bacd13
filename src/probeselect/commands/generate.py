"""`probeselect generate`: start many, finish the best."""

import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from probeselect.commands.options import (
    Json,
    Model,
    check_folder,
    evaluators_named,
    fractions,
    pipeline_arguments,
    rows_bar,
)
from probeselect.core.candidates import candidates_of
from probeselect.core.errors import UsageError
from probeselect.core.rungs import check_apart


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="one or several prompts")],
    model: Model = "embedded",
    scorer: Annotated[
        str,
        typer.Option(
            help="embedded, a probe's folder or hub id, fusion:PROBE, preview:EVALUATOR[=FOLDER], attention, random"
        ),
    ] = "embedded",
    n: Annotated[int | None, typer.Option("-n", help="candidates of each prompt; default: the plan's, or 5")] = None,
    k: Annotated[int | None, typer.Option("-k", help="how many to finish; default: the plan's, or 1")] = None,
    rungs: Annotated[str, typer.Option(help="where candidates are scored, as fractions of the steps")] = "0.2",
    policy: Annotated[str, typer.Option(help="topk, halving, all, or a plan.json")] = "topk",
    diversity: Annotated[float, typer.Option(help="0 to 1: how much the kept should differ, rather than score")] = 0.0,
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
    record: Annotated[
        Path | None, typer.Option(help="dataset that activations and pictures are appended to, to train a probe on")
    ] = None,
    record_share: Annotated[float, typer.Option(help="of the stopped, how many are finished for the record")] = 0.1,
    record_limit: Annotated[float, typer.Option(help="GB; a fuller dataset is left as it is")] = 10.0,
    until: Annotated[
        float | None, typer.Option(help="reward that is good enough: more candidates of a prompt until it is reached")
    ] = None,
    waves: Annotated[int | None, typer.Option(help="with --until: n candidates at most so often; default: 4")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="with --until and an adaptive plan: stop when that is so likely, 0 to 1")
    ] = None,
    previews: Annotated[
        bool, typer.Option("--previews/--no-previews", help="decode every candidate at every rung, to be looked at")
    ] = True,
    out: Annotated[Path, typer.Option(help="folder for result.json and the pictures")] = Path("probeselect-out"),
    as_json: Json = False,
) -> None:
    """Generate n candidates of each prompt, stop the weak ones early, finish the best k."""
    from probeselect.core.diversity import check_diversity
    from probeselect.core.plan_file import check_schedule
    from probeselect.sampling.adaptive import check_adaptive, other_scorer
    from probeselect.sampling.anytime import check_target
    from probeselect.sampling.select import SelectiveSampler

    arguments = pipeline_arguments(model, steps, guidance, height, width, negative_prompt)
    n, k, rung_values, decide = check_schedule(n, k, fractions(rungs), policy)
    check_diversity(diversity)
    check_adaptive(decide, diversity, record is not None)
    check_target(until, confidence, waves, decide, evaluate.split(",") if evaluate else [])
    candidates_of(prompts, n, seed=seed)
    check_apart(rung_values, steps)
    evaluators = evaluators_named(evaluate)
    check_folder(out)
    if record is not None and not rung_values:
        raise UsageError("--record: needs a rung, where activations are kept")

    from probeselect.backbones.loading import load_backbone
    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.backbones.truncation import truncations
    from probeselect.engines.job import taps_to_collect
    from probeselect.report.result_file import write_results

    quiet_libraries()
    backbone = load_backbone(model, dtype=dtype, device=device, tap=tap)
    for line in truncations(backbone.pipe, prompts):
        print(f"probeselect: {line}", file=sys.stderr)
    judges = [load(device=backbone.pipe.device) for load in evaluators]
    sampler = SelectiveSampler(backbone, scorer, batch_size=batch_size)
    if note := other_scorer(decide, sampler.scorer.name):
        print(f"probeselect: {policy}: {note}", file=sys.stderr)
    recorder = None
    if record is not None:
        from probeselect.sampling.collecting import CollectSettings
        from probeselect.sampling.recording import Recorder

        taps = sampler.scorer.taps or taps_to_collect(backbone)
        settings = CollectSettings(run="recorded", n=n, rungs=rung_values, groups_per_shard=1)
        recorder = Recorder(record, backbone, taps, settings, arguments, record_share, 1e9 * record_limit)
    with rows_bar() as progress:
        results = sampler(
            prompts,
            n,
            k,
            rung_values,
            policy=decide,
            diversity=diversity,
            seed=seed,
            evaluators=judges,
            previews=previews,
            record=recorder,
            until=until,
            confidence=confidence,
            waves=waves,
            progress=progress,
            **arguments,
        )
    if recorder is not None:
        from probeselect.jobs.score import score_shard

        for judge, shard in itertools.product(judges, recorder.shards):
            score_shard(recorder.dataset, judge, shard)
        if recorder.full:
            print(f"probeselect: {record} holds {record_limit:g} GB: nothing more is recorded", file=sys.stderr)
    content = write_results(results, out, model=model, scorer=sampler.scorer.name, policy=policy)
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    for result in results:
        print_result(result)
    print(f"{out / 'result.json'}, pictures and contact_sheet.png are in {out}")


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
    for made in result.decisions:
        first, last = made["seeds"][0], made["seeds"][-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        print(f"  wave {made['wave']}, {seeds}: {_why(made)}: {made['decision']}")
    cost = result.cost
    print(f"  {cost.denoiser_rows} of {cost.denoiser_rows_all} denoiser rows ({cost.ratio:.2f}), {cost.seconds:.2f} s")


def _why(made: dict[str, Any]) -> str:
    """What a decision was made by."""
    if "until" in made:
        return f"reward {_figure(made['reward'])}, {made['until']:g} is good enough"
    best = f"best score {_figure(made['best'])}"
    if "chance" in made:
        return f"{best}, good enough by a chance of {made['chance']:.0%}, {made['confidence']:.0%} is asked for"
    if made["expected_gain"] is None:
        return best
    return f"{best}, another wave would gain {made['expected_gain']:.4f}, {made['least_gain']:.4f} is the least"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
