"""`probeselect generate`: start many, finish the best."""

import itertools
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from probeselect.commands.options import (
    Json,
    Model,
    check_device,
    check_dtype,
    check_folder,
    check_scorer,
    evaluators_named,
    fractions,
    pipeline_arguments,
    stop_by,
)
from probeselect.commands.outcome import faults, no_reward, print_result
from probeselect.commands.pictures import inputs
from probeselect.commands.registry import command
from probeselect.core.candidates import candidates_of
from probeselect.core.errors import UsageError
from probeselect.core.names import short_name
from probeselect.core.rungs import check_apart

PICTURES, EVALUATORS = "Pictures", "Evaluators"


@command("Pictures")
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
    image: Annotated[
        Path | None, typer.Option(help="picture to start from or to edit", rich_help_panel=PICTURES)
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="mask for inpainting: white is painted anew", rich_help_panel=PICTURES)
    ] = None,
    control_image: Annotated[
        list[Path] | None,
        typer.Option(
            help="control picture of a ControlNet or adapter; once for each control net", rich_help_panel=PICTURES
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="how much to change the picture, above 0 to 1; default: the pipeline's own", rich_help_panel=PICTURES
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(help="length of a clip, in frames; default: the pipeline's own", rich_help_panel=PICTURES),
    ] = None,
    fps: Annotated[
        int | None,
        typer.Option(help="frames per second of a clip; default: the pipeline's own, or 16", rich_help_panel=PICTURES),
    ] = None,
    clip_format: Annotated[
        str | None,
        typer.Option(help="file format of clips: webp, mp4 or gif; default: webp", rich_help_panel=PICTURES),
    ] = None,
    evaluate: Annotated[
        str,
        typer.Option(help="evaluators of the finished pictures: NAME[=FOLDER],...", rich_help_panel=EVALUATORS),
    ] = "",
    evaluator_device: Annotated[
        str | None,
        typer.Option(
            help="device of the evaluators, also of preview:EVALUATOR; default: where the pipeline computes",
            rich_help_panel=EVALUATORS,
        ),
    ] = None,
    evaluator_dtype: Annotated[
        str | None,
        typer.Option(help="precision of the evaluators: fp32, bf16 or fp16; default: fp32", rich_help_panel=EVALUATORS),
    ] = None,
    tap: Annotated[str | None, typer.Option(help="module path to tap, for unlisted pipelines")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="most candidates in one batch; default: up to 32 that fit")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps ...")] = None,
    record: Annotated[
        Path | None, typer.Option(help="dataset that activations and pictures are appended to, to train a probe on")
    ] = None,
    record_share: Annotated[float, typer.Option(help="of the stopped, how many are finished for the record")] = 0.1,
    record_limit: Annotated[float, typer.Option(help="GB; a fuller dataset is left as it is")] = 10.0,
    until: Annotated[
        float | None, typer.Option(help="reward that is good enough: rounds of fresh seeds until the kept reach it")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="with --until: maximum number of rounds; default: 4")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="with --until and an adaptive plan: stop when the reward is so likely (0-1)"),
    ] = None,
    previews: Annotated[
        bool, typer.Option("--previews/--no-previews", help="decode every candidate at every rung, to be looked at")
    ] = True,
    out: Annotated[Path, typer.Option(help="folder for result.json and the pictures")] = Path("probeselect-out"),
    as_json: Json = False,
) -> None:
    """Generate n candidates of each prompt, stop the weak ones early, finish the best k."""
    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.backbones.requirements import class_of
    from probeselect.policies.named import check_together, schedule_for

    if steps == 1 and policy != "all":
        raise UsageError("--steps 1: a rung needs at least 2 steps; give more, or finish everyone with --policy all")
    arguments = pipeline_arguments(model, steps, guidance, height, width, negative_prompt, least=1)
    schedule = schedule_for(n, k, () if steps == 1 else fractions(rungs), policy, stop_by(until, rounds, confidence))
    check_together(schedule, diversity, record is not None, bool(evaluate))
    candidates_of(prompts, schedule.most, seed=seed)
    if schedule.rungs:
        check_apart(schedule.rungs, steps)
    evaluators = evaluators_named(evaluate)
    check_scorer(scorer)
    check_folder(out)
    for option, name in (("--dtype", dtype), ("--evaluator-dtype", evaluator_dtype)):
        check_dtype(option, name)
    given = inputs(image, mask, control_image or (), strength, frames, fps, clip_format, record is not None)
    for option, name in (("--device", device), ("--evaluator-device", evaluator_device)):
        check_device(option, name)
    quiet_libraries()
    if (pipeline := class_of(model)) is not None:
        given.keywords(pipeline, list(arguments))

    from probeselect.backbones.loading import dtype_named, load_backbone
    from probeselect.backbones.truncation import truncations
    from probeselect.collect.job import taps_to_collect
    from probeselect.rollout.around import execution_device
    from probeselect.select.clips import FPS
    from probeselect.select.result_file import write_results
    from probeselect.select.sampler import SelectiveSampler

    backbone = load_backbone(model, dtype=dtype, device=device, tap=tap)
    arguments |= given.keywords(type(backbone.pipe), list(arguments))
    given.check_control(backbone.pipe)
    for line in truncations(backbone.pipe, prompts):
        print(f"probeselect: {line}", file=sys.stderr)
    judges_device = evaluator_device or execution_device(backbone.pipe)
    judges = [load(device=judges_device, dtype=dtype_named(evaluator_dtype)) for load in evaluators]
    sampler = SelectiveSampler(
        backbone, scorer, batch_size=batch_size, evaluator_device=judges_device, evaluator_dtype=evaluator_dtype
    )
    if schedule.scorer and (name := short_name(sampler.scorer.name)) != schedule.scorer:
        print(
            f"probeselect: {policy}: made with the scores of {schedule.scorer}; its numbers may not be those of {name}",
            file=sys.stderr,
        )
    recorder = None
    if record is not None:
        from probeselect.collect.maker import CollectSettings
        from probeselect.collect.recorder import Recorder

        taps = tuple(map(backbone.tap, sampler.scorer.taps)) or taps_to_collect(backbone)
        settings = CollectSettings(run="recorded", n=schedule.n, rungs=schedule.rungs, groups_per_shard=1)
        recorder = Recorder(record, backbone, taps, settings, arguments, record_share, 1e9 * record_limit)
    results = sampler(
        prompts, n, k, schedule.rungs, policy=policy, stop=stop_by(until, rounds, confidence), diversity=diversity,
        seed=seed, evaluators=judges, previews=previews, record=recorder, **arguments,
    )  # fmt: skip
    if recorder is not None:
        from probeselect.collect.score import score_shard

        for judge, shard in itertools.product(judges, recorder.shards):
            score_shard(recorder.dataset, judge, shard)
        if recorder.full:
            print(f"probeselect: {record} holds {record_limit:g} GB: nothing more is recorded", file=sys.stderr)
    rate = given.fps(type(backbone.pipe), FPS)
    content = write_results(results, out, clips=clip_format or "webp", fps=rate)
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
    else:
        for result in results:
            print_result(result)
        print(f"{out / 'result.json'}, pictures and contact_sheet.png are in {out}")
    lines, failed = faults(results)
    for line in lines:
        print(f"probeselect: {line}", file=sys.stderr)
    if failed or (judges and no_reward(results)):
        raise typer.Exit(1)
