"""Builds everything under `src/probeselect/embedded/weights`.

    python -m research.embedded STAGE... --work FOLDER

Stages, in order: autoencoder, text, denoiser, mmdit, samples (a picture), detector, scene-clip, scene-itm, agreement
(of these three), collect, study (which way of making a probe is best on val prompts), probe. Each resumes where it was
stopped, is seeded and logs JSON lines to the work folder. Times and figures are in `weights/README.md`.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from probeselect.embedded import SHIPPED, WEIGHTS

JUDGES = ("scene-clip", "scene-itm")
STAGES = (
    "autoencoder", "text", "denoiser", "mmdit", "samples", "detector", *JUDGES, "agreement",
    "collect", "study", "probe",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, help="default: all")
    parser.add_argument("--work", type=Path, required=True, help="folder for states, logs and collected groups")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights that ship")
    parser.add_argument("--docs", type=Path, default=Path("docs/study"), help="folder of the study's tables")
    parser.add_argument("--autoencoder-steps", type=int, default=1500)
    parser.add_argument("--text-steps", type=int, default=400)
    parser.add_argument("--denoiser-steps", type=int, default=1900)
    parser.add_argument("--mmdit-steps", type=int, default=1000)
    parser.add_argument("--model", choices=tuple(SHIPPED), action="append", help="to sample from; default: both")
    parser.add_argument("--splits", default="val,test,train", help="to collect")
    parser.add_argument(
        "--from-shipped", action="store_true", help="train denoiser and judges on from what is in --out"
    )
    parser.add_argument("--detector-steps", type=int, default=900)
    parser.add_argument("--judge-steps", type=int, default=2000, help="of scene-clip and scene-itm")
    parser.add_argument("--images", type=int, default=60000, help="renders that the denoiser sees")
    parser.add_argument("--train-prompts", type=int, default=1600)
    parser.add_argument("--val-prompts", type=int, default=208)
    parser.add_argument("--test-prompts", type=int, default=320)
    options = parser.parse_args()
    options.model = options.model or list(SHIPPED)
    if unknown := sorted(set(options.stages) - set(STAGES)):
        parser.error(f"unknown stage {unknown[0]!r}; stages are {', '.join(STAGES)}")
    for stage in STAGES:
        if stage in options.stages:
            BUILDERS[stage](options)


def build_autoencoder(options: argparse.Namespace) -> None:
    from research.embedded import autoencoder

    module = autoencoder.train(options.work, options.autoencoder_steps)
    print(json.dumps({"psnr": round(autoencoder.psnr(module), 2)}), flush=True)


def build_text(options: argparse.Namespace) -> None:
    from research.embedded import text

    text.train(options.work, options.text_steps)


def build_denoiser(options: argparse.Namespace) -> None:
    import torch
    from diffusers import AutoencoderTiny

    from research.embedded import autoencoder, denoiser, text

    shipped = options.out / "backbone"
    if options.from_shipped:
        vae = AutoencoderTiny.from_pretrained(shipped, subfolder="vae", dtype=torch.float32)
    else:
        vae = autoencoder.train(options.work, options.autoencoder_steps)
    generator = denoiser.train(
        options.work,
        vae.requires_grad_(False),
        text.train(options.work, options.text_steps),
        options.denoiser_steps,
        options.images,
        start=shipped if options.from_shipped else None,
    )
    denoiser.save(denoiser.assemble(vae, generator), shipped)


def build_mmdit(options: argparse.Namespace) -> None:
    from research.embedded import denoiser, mmdit

    shipped = options.out / "mmdit"
    start = shipped if options.from_shipped else None
    backbone = options.out / "backbone"
    vae, generator = mmdit.train(options.work, backbone, options.mmdit_steps, options.images, start=start)
    denoiser.save(mmdit.assemble(vae, generator), shipped)


def build_samples(options: argparse.Namespace) -> None:
    from research.embedded.samples import draw_samples

    for model in options.model:
        prompts = draw_samples(model, options.work / f"samples-{model}.png")
        print(json.dumps({f"rows of samples-{model}.png": prompts}), flush=True)


def build_detector(options: argparse.Namespace) -> None:
    from probeselect.evaluators.scene import SceneCheck
    from research.embedded import detector
    from research.embedded.judge import pair_accuracy

    detector.save(detector.train(options.work, options.detector_steps), options.out / "scene-check")
    print(json.dumps(pair_accuracy(SceneCheck(options.out / "scene-check"))), flush=True)


def build_judge(name: str, options: argparse.Namespace) -> None:
    from probeselect.evaluators.table import load_evaluator
    from research.embedded import judges, text
    from research.embedded.judge import pair_accuracy

    encoder = text.train(options.work, options.text_steps)
    start = options.out / name if options.from_shipped else None
    judges.save(name, judges.train(name, options.work, options.judge_steps, encoder, start=start), options.out / name)
    print(json.dumps(pair_accuracy(load_evaluator(name, options.out / name))), flush=True)


def build_agreement(options: argparse.Namespace) -> None:
    from research.embedded.agreement import agreement

    print(json.dumps(agreement(options.out)), flush=True)


def build_collect(options: argparse.Namespace) -> None:
    from research.embedded.groups import collect_split

    counts = {"val": options.val_prompts, "test": options.test_prompts, "train": options.train_prompts}
    for model in options.model:
        for split in options.splits.split(","):
            collect_split(options.work, model, split, counts[split])


def build_study(options: argparse.Namespace) -> None:
    from research.embedded.study import study

    for model in options.model:
        study(options.work, options.docs, model)


def build_probe(options: argparse.Namespace) -> None:
    from research.embedded.ship import ship

    for model in options.model:
        ship(options.work, model)


BUILDERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "autoencoder": build_autoencoder,
    "text": build_text,
    "denoiser": build_denoiser,
    "mmdit": build_mmdit,
    "samples": build_samples,
    "detector": build_detector,
    **{name: partial(build_judge, name) for name in JUDGES},
    "agreement": build_agreement,
    "collect": build_collect,
    "study": build_study,
    "probe": build_probe,
}

if __name__ == "__main__":
    main()
