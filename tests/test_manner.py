"""What is tried next when a batch was wrong or failed, and what of it is remembered."""

import gc

import pytest
import torch
from PIL import Image
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.core.candidates import candidates_of
from probeselect.rollout.manner import Manner, Unlike, manner_of
from probeselect.rollout.rollout import Tally, rollout

ONE_PROMPT, TWO_PROMPTS = candidates_of("a", 4), candidates_of(["a", "b"], 2)
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def narrowed(manner: Manner, wave, error, begun=True, pictures=False):
    note = manner.narrow("Pipe", wave, error, begun=begun, pictures=pictures)
    return note, (manner.copies, manner.mixed, manner.most)


def test_out_of_memory_halves_and_changes_nothing_else():
    note, state = narrowed(Manner(), ONE_PROMPT, OUT_OF_MEMORY, pictures=True)
    assert state == (True, True, 2) and note == "Out of memory with 4 candidates in a call: 2 at a time from here."


def test_a_wrong_batch_is_tried_without_copies_then_one_prompt_then_alone():
    manner = Manner()
    assert narrowed(manner, TWO_PROMPTS, Unlike(), pictures=True) == (None, (False, True, None))
    note, state = narrowed(manner, TWO_PROMPTS, Unlike(), pictures=True)
    assert state == (True, False, None) and "one prompt in a call only" in note
    assert narrowed(manner, ONE_PROMPT, Unlike(), pictures=True) == (None, (False, False, None))
    note, state = narrowed(manner, ONE_PROMPT, Unlike(), pictures=True)
    assert state[2] == 1 and "one candidate in a call only" in note


def test_other_failures_halve_once_steps_were_computed_and_go_to_one_before():
    error = ValueError("shapes\ndo not fit")
    note, state = narrowed(Manner(), ONE_PROMPT, error)
    assert state[2] == 2
    assert note == "Pipe fails with 4 candidates in a call (shapes do not fit): 2 at a time from here."
    assert narrowed(Manner(), ONE_PROMPT, error, begun=False)[1][2] == 1


def test_a_kind_of_call_is_known_by_forms_sizes_and_components():
    pipe = tiny_sd()
    known = manner_of(pipe, {"height": 16, "guidance_scale": 4.0, "image": Image.new("RGB", (16, 16))})
    same = {"height": 16, "guidance_scale": 7.5, "image": Image.new("RGB", (16, 16), "red")}
    assert manner_of(pipe, same) is known
    for other in ({**same, "height": 24}, {**same, "guidance_scale": 1.0}, {**same, "image": Image.new("RGB", (8, 8))}):
        assert manner_of(pipe, other) is not known
    pipe.unet = tiny_sd().unet
    assert manner_of(pipe, same) is not known
    assert manner_of(tiny_sd(), same) is not known


def test_nothing_is_remembered_of_a_pipeline_that_is_gone():
    from probeselect.rollout.manner import _MANNERS

    pipe = tiny_sd()
    manner_of(pipe, {})
    before = len(_MANNERS)
    del pipe
    gc.collect()
    assert len(_MANNERS) < before


@pytest.mark.parametrize(("latest", "wasted"), [(1000, 0), (600, 12)])
def test_steps_of_a_batch_that_failed_are_counted_when_they_were_computed(latest, wasted):
    """4 candidates, 8 steps, rung at the 4th, 1 finished: 20 steps, and those of the batch that ran out of memory."""
    pipe = tiny_sd()

    def out_of_memory(module, args, kwargs):
        if len(args[0]) > 4 and args[1] < latest:
            raise OUT_OF_MEMORY

    pipe.unet.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    tally = Tally()
    arguments = {"num_inference_steps": 8, "guidance_scale": 4.0, "height": 16, "width": 16}
    list(rollout(load_backbone(pipe), ONE_PROMPT, [0.5], keep=lambda _: [0], tally=tally, **arguments))
    assert tally.wave_halvings == 1 and tally.largest_wave == 2
    assert tally.denoiser_rows == sum(tally.steps_of.values()) == 20 + wasted
    assert {c: tally.steps_of[c] - wasted // 4 for c in ONE_PROMPT} == dict(zip(ONE_PROMPT, (8, 4, 4, 4), strict=True))


def test_a_size_that_fitted_is_remembered_for_the_next_call():
    pipe, refused = tiny_sd(), []

    def out_of_memory(module, args, kwargs):
        if len(args[0]) > 4:
            refused.append(len(args[0]))
            raise OUT_OF_MEMORY

    pipe.unet.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    arguments = {"num_inference_steps": 4, "guidance_scale": 4.0, "height": 16, "width": 16}
    tallies = [Tally(), Tally()]
    for tally in tallies:
        for _ in rollout(load_backbone(pipe), candidates_of("a", 8), [0.5], tally=tally, finish=False, **arguments):
            pass
    assert refused == [16, 8]  # rows of 8 and 4 candidates, in the first call
    assert [len(tally.notes) for tally in tallies] == [2, 0]
