"""A part of benchmarks/compatibility.py: rows of every kind, and that each guard is one without which rows turn red.

The whole, over 1,800 rows, is docs/compatibility.md, which only that script writes.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from compat import every_trial  # noqa: E402
from compat.trial import EXACT, NO_SEED, OUTCOMES, REFUSED, RESTARTED, Row, Trial, run  # noqa: E402

from probeselect.rollout import (  # noqa: E402
    arguments,
    batches,
    digests,
    memory,
    noise,
    outputs,
    replay,
    tape,
)

TRIALS = {trial.name: trial for trial in every_trial()}


def tried(name: str, **changes) -> Row:
    return run(TRIALS[name] if not changes else Trial(**{**vars(TRIALS[name]), **changes}))


# What only the digests find out: these are wrong in a batch, and nothing raises.
ROWS_OF_THE_CHECK = (
    "StableDiffusionInpaintPipeline | padding_mask_crop (2)", "StableDiffusion3InpaintPipeline | padding_mask_crop",
    "StableDiffusionXLControlNetUnionInpaintPipeline | plain", "StableDiffusionPanoramaPipeline | plain",
    "LattePipeline | plain",
)  # fmt: skip
# Name of the row -> what must come out, and with how many candidates in a call (0: any).
ROWS: dict[str, tuple[str, int]] = {
    # one picture for n generators, in shared batches
    "StableDiffusionInpaintPipeline | no guidance": (EXACT, 4),
    "StableDiffusion3Img2ImgPipeline | plain": (EXACT, 4),
    "StableDiffusionXLInpaintPipeline | plain": (EXACT, 4),
    "ZImageImg2ImgPipeline | plain": (EXACT, 4),
    "FluxFillPipeline | plain": (EXACT, 4),
    "FluxImg2ImgPipeline | tensor image": (EXACT, 4),
    # other modules of the loop, second experts, pipelines of pipelines
    "FluxControlNetPipeline | plain": (EXACT, 4),
    "WanPipeline | plain (2)": (EXACT, 4),
    # right for one candidate, or one prompt, in a call
    "QwenImageLayeredPipeline | plain": (EXACT, 0),
    "AmusedPipeline | plain": (EXACT, 1),
    "StableVideoDiffusionPipeline | frames decoded in twos": (EXACT, 0),
    **dict.fromkeys(ROWS_OF_THE_CHECK, (EXACT, 0)),
    "family CogView4 | two prompts of unlike length": (EXACT, 0),
    # a memory
    "FluxPipeline | First Block Cache": (RESTARTED, 4),
    "FluxPipeline | MagCache": (RESTARTED, 4),
    "FluxPipeline | TaylorSeer": (RESTARTED, 4),
    "WanPipeline | Pyramid Attention Broadcast": (RESTARTED, 4),
    "FluxPipeline | a counter on the module": (RESTARTED, 4),
    "FluxPipeline | a counter on the pipeline": (RESTARTED, 4),
    # noise of torch's own generator
    "StableDiffusion3ControlNetPipeline | plain": (NO_SEED, 1),
    "StableDiffusion3Pipeline | FlowMatchEuler, stochastic": (NO_SEED, 4),
    # schedulers and few steps
    "StableDiffusionPipeline | SDE-DPM++": (EXACT, 4),
    "StableDiffusion3Pipeline | 2 steps": (EXACT, 4),
    "StableDiffusion3Pipeline | 1 step": (REFUSED, 0),
    # callbacks
    "StableDiffusionPipeline | one that looks, previews": (EXACT, 4),
    "StableDiffusionPipeline | SDCFGCutoffCallback": (EXACT, 0),
    "FluxPipeline | one that changes the latents": (EXACT, 4),
    # arguments and outputs
    "StableDiffusionPipeline | prompt embeddings, one row a candidate": (EXACT, 4),
    "StableDiffusionPipeline | prompt embeddings, three rows for four": (REFUSED, 0),
    "FluxPipeline | latents, one a candidate": (EXACT, 4),
    "FluxPipeline | num_images_per_prompt": (REFUSED, 0),
    "FluxPipeline | pt, evaluators": (EXACT, 4),
    "FluxPipeline | latent, evaluators": (REFUSED, 0),
    # ways to run
    "FluxPipeline | sequential offload, previews": (EXACT, 4),
    "FluxPipeline | memory for 2, a second call": (EXACT, 2),
    # pictures that break down
    "FluxPipeline | not finite from step 5 on": (EXACT, 4),
    "StableDiffusionPipeline | a safety checker": (EXACT, 4),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_its_outcome(name):
    outcome, wave = ROWS[name]
    row = tried(name)
    assert row.outcome == outcome, row.line()
    assert not wave or row.wave == wave, row.line()


EVERYDAY = (
    "StableDiffusionInpaintPipeline | plain", "StableDiffusionXLInpaintPipeline | plain", "FluxImg2ImgPipeline | plain",
    "FluxFillPipeline | plain", "StableDiffusion3Img2ImgPipeline | plain", "ZImageImg2ImgPipeline | plain",
)  # fmt: skip


@pytest.mark.parametrize("name", EVERYDAY)
def test_two_of_five_in_one_batch_are_the_stock_pictures(name):
    row = tried(name, n=5, k=2)
    assert row.outcome == EXACT and row.wave == 5 and not row.sentences, row.line()


@pytest.mark.parametrize("previews", [False, True])
@pytest.mark.parametrize(
    "name", ["StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline", "FluxControlNetPipeline"]
)
def test_a_control_net_computes_36_of_100_steps(name, previews):
    trial = TRIALS[f"{name} | plain"]
    row = tried(
        trial.name, n=5, k=1, rungs=(0.2,), arguments={**trial.arguments, "num_inference_steps": 20},
        call={"previews": previews},
    )  # fmt: skip
    assert row.outcome == EXACT and row.steps_all == 100, row.line()
    assert set(row.modules.values()) == {36} and len(row.modules) == 2


# ---- without its guard a kind goes wrong, and its row says so


def accept_any_digest(monkeypatch):
    monkeypatch.setattr(digests.Digest, "matches", lambda self, other: True)


def forget_what_control_nets_gave(monkeypatch):
    usual = tape.Tape.add
    monkeypatch.setattr(
        tape.Tape, "add", lambda self, module, *rest: None if "control" in module else usual(self, module, *rest)
    )


def see_no_memory(monkeypatch):
    monkeypatch.setattr(
        memory.MemoryWatch, "remembers", property(lambda self: "", lambda self, value: None), raising=False
    )


def leave_callbacks_alone(monkeypatch):
    monkeypatch.setattr(replay, "watched", lambda given, *rest: given)


def see_no_noise(monkeypatch):
    monkeypatch.setattr(noise.NoiseWatch, "used", lambda self: False)


def make_no_copies(monkeypatch):
    usual = arguments.spread
    monkeypatch.setattr(batches, "spread", lambda *given: usual(*given[:-1], False))
    accept_any_digest(monkeypatch)


def see_no_flaws(monkeypatch):
    monkeypatch.setattr(outputs.Watch, "flags", lambda self, output, pictures: [[] for _ in pictures])


def believe_every_picture(monkeypatch):
    monkeypatch.setattr(batches, "alike", lambda a, b: True)


def do_not_count_failures(monkeypatch):
    usual = replay.BatchRun._count
    monkeypatch.setattr(replay.BatchRun, "_count", lambda self: None if sys.exc_info()[0] else usual(self))


BREAKAGES = [
    *((accept_any_digest, name) for name in ROWS_OF_THE_CHECK),
    (make_no_copies, "StableDiffusionXLInpaintPipeline | plain"),
    (make_no_copies, "FluxImg2ImgPipeline | tensor image"),
    (forget_what_control_nets_gave, "FluxControlNetPipeline | plain"),
    (see_no_memory, "FluxPipeline | First Block Cache"),
    (see_no_memory, "FluxPipeline | a counter on the pipeline"),
    (leave_callbacks_alone, "StableDiffusionPipeline | one that looks, previews"),
    (see_no_noise, "StableDiffusion3ControlNetPipeline | plain"),
    (see_no_flaws, "StableDiffusionPipeline | a safety checker"),
    (see_no_flaws, "FluxPipeline | not finite from step 5 on"),
    (believe_every_picture, "StableVideoDiffusionPipeline | frames decoded in twos"),
    (do_not_count_failures, "AmusedPipeline | plain"),
]


@pytest.mark.parametrize(("broken", "name"), BREAKAGES, ids=lambda value: getattr(value, "__name__", value))
def test_without_its_guard_a_row_turns_red(broken, name, monkeypatch):
    broken(monkeypatch)
    row = tried(name)
    assert row.outcome != ROWS[name][0], row.line()


# ---- the page


def test_the_page_has_every_row_and_no_other_outcome():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    rows = [cells for cells in rows if len(cells) == 6 and cells[0] != "pipeline" and set(cells[0]) != {"-"}]
    written = {f"{cells[0]} | {cells[1]}": cells[2] for cells in rows}
    assert set(written.values()) <= set(OUTCOMES)
    ours = {name for name in TRIALS if "DPMSolverSDE" not in name}  # which needs a package of its own
    assert ours <= written.keys() and len(written.keys() - set(TRIALS)) <= 1
    assert len(written) >= 150 and len({name.split(" | ")[0] for name in written}) >= 45
    for name, (outcome, _) in ROWS.items():
        assert written[name] == outcome


def test_a_row_sees_a_picture_that_is_not_the_stock_one(monkeypatch):
    """The judge itself: pictures that are off by 1 % are WRONG."""
    usual = outputs.pictures_of
    monkeypatch.setattr(replay, "pictures_of", lambda output, n: [0.99 * p for p in usual(output, n)])
    row = tried("FluxPipeline | latents, one a candidate")
    assert row.outcome not in OUTCOMES and "not the stock picture" in row.line()
