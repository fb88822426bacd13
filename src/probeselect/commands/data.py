"""`probeselect collect`, `score` and `convert`: training data, and the evaluators that judge it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probeselect.commands.options import Json, Model, check_dtype, check_source, fractions, pipeline_arguments
from probeselect.commands.registry import command
from probeselect.core.errors import UsageError
from probeselect.core.rungs import check_met, validate_rungs

if TYPE_CHECKING:
    from probeselect.collect.job import CollectJob
    from probeselect.collect.loop import Progress

ENGINES = ("local", "accelerate", "ray")
Evaluators = Annotated[str, typer.Option(help="NAME[=FOLDER or URL],... that judge the finished pictures")]
Part = Annotated[str, typer.Option(help="i/n: the i-th of n parts, for job arrays; counted from 1")]


@command("Probes")
def collect(
    prompts: Annotated[Path, typer.Option(help="text, JSON lines, Parquet or COCO captions")],
    out: Annotated[Path, typer.Option(help="folder of the dataset; rerun = resume")],
    model: Model = "embedded",
    n: Annotated[int, typer.Option("-n", help="candidates of each prompt")] = 5,
    rungs: Annotated[str, typer.Option(help="where activations are kept, as fractions of the steps")] = "0.1,0.2,0.4",
    taps: Annotated[str, typer.Option(help="module paths of the denoiser, x0 and attention; or default")] = "default",
    evaluators: Evaluators = "",
    engine: Annotated[str, typer.Option(help=", ".join(ENGINES))] = "local",
    part: Part = "1/1",
    steps: Annotated[int, typer.Option(help="inference steps")] = 20,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; default: the model's own")] = None,
    height: Annotated[int | None, typer.Option(help="px")] = None,
    width: Annotated[int | None, typer.Option(help="px")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what not to show")] = None,
    run: Annotated[str, typer.Option(help="a name that the seeds come from; another name, other pictures")] = "",
    map_channels: Annotated[int, typer.Option(help="of a tap, after the fixed projection")] = 48,
    map_side: Annotated[int, typer.Option(help="shorter side that a tap's map is reduced to")] = 16,
    previews: Annotated[
        bool, typer.Option("--previews", help="keep the decoded x0-predictions, and judge them")
    ] = False,
    image_format: Annotated[str, typer.Option(help="png, webp (lossless) or jpeg")] = "png",
    groups_per_shard: Annotated[int, typer.Option(help="prompts in a shard, and in a batch")] = 16,
    batch_size: Annotated[
        int | None, typer.Option(help="most candidates in one batch; default: up to 32 that fit")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0,cuda:1 ...; default: every GPU")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a hub model")] = None,
    generators: Annotated[int, typer.Option(help="ray: actors that generate")] = 1,
    scorers: Annotated[int, typer.Option(help="ray: actors that score")] = 1,
    generator_gpus: Annotated[float, typer.Option(help="ray: GPUs of each generator")] = 0.0,
    scorer_gpus: Annotated[float, typer.Option(help="ray: GPUs, or a fraction of one, of each scorer")] = 0.0,
    ray_address: Annotated[str | None, typer.Option(help="ray: a running cluster; default: this machine")] = None,
    as_json: Json = False,
) -> None:
    """Generate candidates of every prompt; keep activations at the rungs, the pictures and their rewards."""
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine!r}: is not one of {', '.join(ENGINES)}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, must be a folder")
    arguments = pipeline_arguments(model, steps, guidance, height, width, negative_prompt)

    check_dtype("--dtype", dtype)
    check_met(validate_rungs(fractions(rungs)), steps)

    from probeselect.data.prompts import read_prompts
    from probeselect.evaluators.table import parse_evaluators

    judges = tuple(parse_evaluators(evaluators))
    listed = read_prompts(prompts)

    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.backbones.requirements import check_stills, class_of, needs
    from probeselect.collect.job import CollectJob
    from probeselect.collect.loop import parse_part
    from probeselect.collect.maker import CollectSettings

    quiet_libraries()
    if (pipeline := class_of(model, revision)) is not None:
        check_stills(pipeline, "collect")
        if more := needs(pipeline):
            raise UsageError(f"collect gives the pipeline nothing but prompts; {pipeline.__name__} needs {more[0]}")
    settings = CollectSettings(
        run=run, n=n, rungs=fractions(rungs), map_channels=map_channels, map_side=map_side, previews=previews,
        image_format=image_format, groups_per_shard=groups_per_shard, batch_size=batch_size,
    )  # fmt: skip
    part_of = parse_part(part)
    for note in listed.notes:
        print(f"probeselect: {note}", file=sys.stderr)
    job = CollectJob(
        folder=out, prompts=listed, model=model, revision=revision, taps=_taps(taps), settings=settings,
        arguments=arguments, evaluators=judges, dtype=dtype, device=device, part=part_of,
    )  # fmt: skip

    from probeselect.collect.summary import write_summary
    from probeselect.data.dataset import Dataset

    with _images_bar(job) as bar:
        if engine == "ray":
            from probeselect.collect.ray import RaySettings, run_on_ray

            ray = RaySettings(
                generators=generators, scorers=scorers, generator_gpus=generator_gpus, scorer_gpus=scorer_gpus,
                address=ray_address,
            )  # fmt: skip
            done = run_on_ray(job, ray)
        elif engine == "accelerate":
            from probeselect.collect.accelerate import run_ranks

            done = run_ranks(job, bar.step, bar.say)
        else:
            from probeselect.collect.local import devices_of, run_here, run_on_devices

            devices = devices_of(device)
            done = run_on_devices(job, devices) if len(devices) > 1 else run_here(job, bar.step, bar.say)
        for progress in done:
            bar.shard(progress)
    if bar.shards_done < job.shards:
        return  # another rank of accelerate speaks for all
    summary = write_summary(Dataset(out))
    _say(summary, out, as_json)


@command("Probes")
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a dataset")],
    evaluators: Evaluators,
    part: Part = "1/1",
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...")] = None,
    as_json: Json = False,
) -> None:
    """Add rewards to the pictures of a dataset; what is there already is left alone."""
    from probeselect.evaluators.table import parse_evaluators

    named = parse_evaluators(evaluators)
    if not named:
        raise UsageError("--evaluators: name at least one")
    check_source(folder)

    from probeselect.collect.loop import parse_part
    from probeselect.data.dataset import Dataset

    dataset, part_of = Dataset(folder), parse_part(part)
    named = parse_evaluators(evaluators)
    if not named:
        raise UsageError("--evaluators: name at least one")
    check_source(folder)

    from tqdm import tqdm

    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.collect.job import load_judges
    from probeselect.collect.score import score as score_with
    from probeselect.collect.summary import write_summary

    quiet_libraries()
    judges = load_judges(named, device)
    for judge in judges:
        done = score_with(dataset, judge, part_of)
        total = len([index for index in dataset.done() if index % part_of[1] == part_of[0]])
        with tqdm(done, desc=judge.name, total=total, unit=" shards", disable=None, leave=False) as bar:
            for _ in bar:
                pass
    _say(write_summary(Dataset(folder)), folder, as_json)


@command("About")
def convert(
    name: Annotated[str, typer.Argument(help="evaluator whose published file it is")],
    file: Annotated[Path, typer.Argument(help="the published pickle (.pt, .bin, .pth)")],
    out: Annotated[Path, typer.Option(help="folder for the converted model")],
    processor: Annotated[str | None, typer.Option(help="folder or hub id of tokenizer and image processor")] = None,
    sha256: Annotated[str | None, typer.Option(help="digest that the file must have")] = None,
) -> None:
    """Turn a published pickle into safetensors, once, in a process that can load nothing but tensors."""
    from probeselect.backbones.quiet import quiet_libraries
    from probeselect.evaluators.convert import convert as convert_file

    quiet_libraries()
    convert_file(name, file, out, processor=processor, sha256=sha256)


def _taps(text: str) -> tuple[str, ...]:
    return () if text == "default" else tuple(part.strip() for part in text.split(",") if part.strip())


def _say(summary: dict[str, Any], folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    from probeselect.evaluators.table import off_the_typical

    candidates = ", ".join(f"{count} {status}" for status, count in summary["candidates"].items())
    print(f"{summary['groups']} of {summary['groups_planned']} prompts; candidates: {candidates}")
    print(f"{summary['bytes_per_candidate']} bytes a candidate")
    for name, figures in summary["rewards"].items():
        counts = ", ".join(f"{count} {status}" for status, count in figures["statuses"].items())
        about = f"mean {figures['mean']}, std {figures['std']}, within a prompt {figures['std_within_prompt']}"
        print(f"{name}: {counts}; {about}")
        if figures["mean"] is not None and (line := off_the_typical(name, figures["mean"])):
            print(f"probeselect: {line}", file=sys.stderr)
    print(f"{folder / 'summary.png'} shows it")


class _ImagesBar:
    """Progress in pictures, with their rate and the time left; on stderr, and silent where that is no terminal."""

    def __init__(self, bar: Any, n: int) -> None:
        self.bar, self.n, self.images, self.in_shard = bar, n, 0, 0
        self.shards_done = 0

    def step(self, done: int, planned: int) -> None:
        """So much of the work on one shard is done."""
        shown = self.images + int(self.in_shard * done / max(planned, 1))
        self.bar.update(shown - self.bar.n)

    def say(self, line: str) -> None:
        self.bar.write(f"probeselect: {line}", file=sys.stderr)

    def shard(self, progress: "Progress") -> None:
        if progress.damage:
            self.say(f"{progress.damage}; set aside and made again")
        images = progress.groups * self.n
        self.images, self.in_shard, self.shards_done = self.images + images, images, self.shards_done + 1
        if (
            progress.how == "found" and not self.bar.disable
        ):  # reading it again is no measure of how fast pictures are made
            self.bar.initial += images
        self.bar.update(self.images - self.bar.n)


@contextmanager
def _images_bar(job: "CollectJob") -> Iterator[_ImagesBar]:
    from tqdm import tqdm

    size, (first, parts) = job.settings.groups_per_shard, job.part
    prompts = len(job.prompts.prompts)
    images = sum(min(size, prompts - i * size) for i in range(first, -(-prompts // size), parts)) * job.settings.n
    with tqdm(total=images, unit=" images", file=sys.stderr, disable=None, leave=False) as bar:
        yield _ImagesBar(bar, job.settings.n)
