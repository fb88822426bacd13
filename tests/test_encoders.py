"""Encoders run once for a text, and never give what they gave to another call."""

import pytest
import torch
from tiny import TINY, tiny_sd

from probeselect import SelectiveSampler
from probeselect.rollout.encoders import EncoderMemo

IDS = torch.tensor([[0, 3, 5, 1] * 4, [0, 4, 4, 1] * 4])


@pytest.fixture
def pipe():
    return tiny_sd()


def test_rows_that_were_met_are_not_computed_again_in_any_order_or_batch(pipe):
    memo = EncoderMemo()
    plain = pipe.text_encoder(IDS).last_hidden_state
    with memo.remembering(pipe):
        first = pipe.text_encoder(IDS).last_hidden_state
        swapped = pipe.text_encoder(IDS[[1, 0, 1]]).last_hidden_state
    assert memo.computed_rows == 2
    assert torch.equal(first, plain) and torch.equal(swapped, plain[[1, 0, 1]])


def test_what_is_no_tensor_is_part_of_what_was_asked(pipe):
    """The same ids with the layers' outputs asked for is another call: clip_skip reads those."""
    memo = EncoderMemo()
    with memo.remembering(pipe):
        without = pipe.text_encoder(IDS)
        all_layers = pipe.text_encoder(IDS, output_hidden_states=True)
    assert memo.computed_rows == 4
    assert without.hidden_states is None and len(all_layers.hidden_states) > 1


def test_pictures_are_told_apart_by_their_content(pipe):
    memo = EncoderMemo()
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with memo.remembering(pipe):
        both = pipe.vae.encoder(pictures)
        again = pipe.vae.encoder(pictures.clone())
        other = pipe.vae.encoder(1 - pictures)
    assert memo.computed_rows == 4
    assert torch.equal(both, again) and not torch.allclose(both, other)


def test_a_call_with_a_state_of_its_own_is_left_alone(pipe):
    memo = EncoderMemo()
    with memo.remembering(pipe):
        pipe.vae.encoder(torch.rand(1, 3, 16, 16))
        calls = memo.computed_rows
        usual = pipe.text_encoder.forward
        assert usual is not type(pipe.text_encoder).forward
        pipe.text_encoder(IDS, position_ids=None)
        assert memo.computed_rows == calls + 2
    assert "forward" not in vars(pipe.text_encoder)


def test_the_prior_of_a_combined_pipeline_runs_once_for_each_candidate():
    build, arguments = TINY["Kandinsky 2.2"]
    pipe, rows = build(), []
    inner = next(pipe.prior_prior.transformer_blocks.children())
    inner.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    result = SelectiveSampler(pipe, "random")("a cat", n=3, k=1, rungs=[0.5], **arguments)
    assert result.cost.ratio == 8 / 12
    assert sum(rows) == 2 * 3 * arguments["prior_num_inference_steps"]  # with and without the prompt
