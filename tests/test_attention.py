"""The cross-attention tap and its scorer: the model's own probabilities, the right rows, and nothing else changed."""

import json
import math
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from collected import ARGUMENTS, Redness, collected, table_of
from tiny import tiny_kandinsky22, tiny_lcm, tiny_pixart, tiny_sd, tiny_sd3, tiny_sdxl
from torch import Tensor

from probeselect.backbones.cross_attention import sizes_of
from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import ATTENTION, X0, Tap, TapReader
from probeselect.cli import main
from probeselect.collect.maker import CollectSettings, ShardMaker
from probeselect.core.candidates import candidates_of
from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.shards import seeds_of
from probeselect.rollout.rollout import rollout
from probeselect.scorers.attention import AttentionScorer, neglect_scores, words_of
from probeselect.scorers.context import tokenizer_of
from probeselect.scorers.table import load_scorer
from probeselect.select.sampler import SelectiveSampler

TOKENS = 16  # of the tiny text encoder
PROMPTS = ["red cat", "a dog"]


@cache
def tiny() -> Backbone:
    return load_backbone(tiny_sd())


def call_unet(rows: int, height: int, width: int) -> None:
    """One call on random latents and texts, as a pipeline would make it."""
    unet, draw = tiny().denoiser, torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 4, height, width, generator=draw)
    text = 3 * torch.randn(rows, TOKENS, unet.config.cross_attention_dim, generator=draw)
    with torch.no_grad():
        unet(latents, 10, encoder_hidden_states=text)


def hook_count(backbone: Backbone) -> int:
    modules = backbone.denoiser.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def attn2(backbone: Backbone) -> list:
    return [module for path, module in backbone.denoiser.named_modules() if path.endswith("attn2")]


@contextmanager
def planted(modules: list, value):
    """`value(output)` in place of what the modules give."""
    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_hook(lambda module, args, output: value(output))
            stack.callback(handle.remove)
        yield


@pytest.mark.parametrize(("latents", "cells"), [((8, 8), (8, 8)), ((24, 40), (12, 20)), ((33, 35), (17, 18))])
def test_the_probabilities_are_those_that_diffusers_computes(latents, cells):
    """From the inputs of every attn2 and its own weights, at the resolution nearest to 16 cells."""
    inputs = []
    handles = [
        module.register_forward_pre_hook(lambda m, args, kwargs: inputs.append((m, args, kwargs)), with_kwargs=True)
        for module in attn2(tiny())
    ]
    with TapReader(tiny(), [ATTENTION]) as reader:
        call_unet(4, *latents)
        maps = reader.read(2)["attention"]
    for handle in handles:
        handle.remove()
    found = []
    for module, args, kwargs in inputs:
        if args[0].shape[1] == cells[0] * cells[1]:
            query = module.head_to_batch_dim(module.to_q(args[0]))
            key = module.head_to_batch_dim(module.to_k(kwargs["encoder_hidden_states"]))
            by_head = module.get_attention_scores(query, key).view(4, module.heads, -1, TOKENS)
            found.append(by_head.mean(1)[2:])  # the conditional half
    assert len(found) == 3 < len(inputs) and maps.shape == (2, TOKENS, *cells)
    expected = torch.stack(found).mean(0).transpose(1, 2).reshape(maps.shape)
    assert torch.allclose(maps, expected, atol=1e-6)
    assert torch.allclose(maps.sum(1), torch.ones(2, *cells)) and expected.std() > 1e-3


def test_a_map_lies_as_the_image_does():
    """Queries of the second row, third column point at token 5, all others at token 0."""

    def queries(output: Tensor) -> Tensor:
        ones = torch.ones_like(output)
        if output.shape[1] == 8 * 12:
            ones.unflatten(1, (8, 12))[:, 1, 2] = -1
        return ones

    def keys(output: Tensor) -> Tensor:
        weights = torch.zeros_like(output)
        weights[:, 0], weights[:, 5] = 100, -100
        return weights

    layers, seen = attn2(tiny()), torch.zeros(8, 12)
    seen[1, 2] = 1
    with (
        planted([m.to_k for m in layers], keys),
        planted([m.to_q for m in layers], queries),
        TapReader(tiny(), [ATTENTION]) as reader,
    ):
        call_unet(2, 8, 12)
        assert torch.equal(reader.read(1)["attention"][0, 5], seen)


@pytest.mark.parametrize(("build", "half"), [(tiny_sd, 3), (tiny_sdxl, 3), (tiny_lcm, 0)])
def test_conditional_rows_alone_in_candidate_order(build, half):
    """Row r of every call attends to token r alone."""
    backbone = load_backbone(build())
    layers = attn2(backbone)

    def keys(output: Tensor) -> Tensor:
        weights = torch.zeros_like(output)
        for row in range(len(output)):
            weights[row, row] = 1e3
        return weights

    with planted([m.to_k for m in layers], keys), planted([m.to_q for m in layers], torch.ones_like):
        stage = next(iter(rollout(backbone, candidates_of("a", 3), [0.4], taps=(ATTENTION,), **ARGUMENTS)))
    looked_at = stage.maps["attention"].mean((2, 3))  # [3, T]
    assert torch.equal(looked_at, torch.eye(looked_at.shape[1])[half : half + 3])


def maps_and_pictures(taps: tuple[Tap, ...], batch_size: int | None = None) -> tuple[dict[float, Tensor], Tensor]:
    maps, arguments = {}, {**ARGUMENTS, "output_type": "pt"}
    candidates = candidates_of(PROMPTS, 3)
    for stage in rollout(tiny(), candidates, [0.2, 0.6], taps=taps, batch_size=batch_size, **arguments):
        if stage.rung == 1:
            return maps, torch.stack(list(stage.pictures))
        maps[stage.rung] = stage.maps.get("attention")
    raise AssertionError


def test_the_tap_changes_no_picture_and_waves_change_no_map():
    _, untouched = maps_and_pictures(())
    together, pictures = maps_and_pictures((ATTENTION,))
    assert torch.equal(pictures, untouched)
    for size in (1, 4):
        apart, _ = maps_and_pictures((*tiny().taps, ATTENTION, X0), size)
        for rung, maps in together.items():
            assert maps.shape == (6, TOKENS, 8, 8) and torch.allclose(apart[rung], maps, atol=1e-5)
            assert not torch.allclose(maps[0], maps[1], atol=1e-3), "the comparison would not see a swap"
    assert hook_count(tiny()) == 0


def test_the_pipeline_is_left_as_it_was_found_after_an_exception():
    def stop(done: int, planned: int) -> None:
        assert hook_count(tiny()) > 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(rollout(tiny(), candidates_of("a", 2), [0.4], taps=(ATTENTION,), progress=stop, **ARGUMENTS))
    assert hook_count(tiny()) == 0 and not any("forward" in vars(m) for m in tiny().denoiser.modules())


@pytest.mark.parametrize("build", [tiny_sd3, tiny_pixart, tiny_kandinsky22])
def test_backbones_without_such_attention_are_refused_in_one_line(build):
    backbone = load_backbone(build())
    for attempt in (
        lambda: load_scorer("attention", backbone),
        lambda: load_backbone(backbone, tap="attention"),
        lambda: TapReader(backbone, [ATTENTION]).__enter__(),
    ):
        with pytest.raises(UsageError, match=f"{type(backbone.denoiser).__name__} has no cross-attention") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert hook_count(backbone) == 0


def test_what_cannot_be_read_is_an_error_that_says_why():
    backbone = load_backbone(tiny_sd())
    backbone.pipe.fuse_qkv_projections()  # keys and values in one
    with pytest.raises(ProbeSelectError, match=r"no queries or no keys.*unfuse_qkv_projections"):
        list(rollout(backbone, candidates_of("a", 2), [0.4], taps=(ATTENTION,), **ARGUMENTS))


def test_names_of_virtual_taps_and_sizes_of_maps():
    assert sizes_of(9, 6) == [(9, 6), (5, 3), (3, 2), (2, 1), (1, 1)]
    family = tiny().family
    assert (Tap.parse(" attention ", family), Tap.parse("x0", family)) == (ATTENTION, X0)
    maps = SelectiveSampler(tiny(), "random").features("a", [0, 1], 0.4, tap="attention", **ARGUMENTS)
    assert maps.shape == (2, TOKENS, 8, 8)


def test_words_and_their_tokens():
    clip = tiny().pipe.tokenizer  # a token a letter
    assert words_of("A red-hot CAT, on top", clip) == [[2, 3, 4], [6, 7, 8], [9, 10, 11]]
    assert words_of("a photo of the", clip) == words_of("", clip) == []
    assert words_of("abcdefghijkl mnopq rst", clip) == [list(range(1, 13)), [13, 14]]  # cut at 16 tokens
    shipped = tokenizer_of("embedded")
    assert words_of("a picture of two red cars, above a panda", shipped) == [[4], [5], [6], [9]]
    with pytest.raises(UsageError, match="SimpleNamespace cannot say which tokens"):
        words_of("a", SimpleNamespace())
    with pytest.raises(ProbeSelectError, match="cannot load the tokenizer of '/nowhere'"):
        tokenizer_of("/nowhere")


def slow_score(maps: list, words: list[list[int]]) -> float:
    """The formula cell by cell, without torch."""
    height, width = len(maps[0]), len(maps[0][0])
    weights = [[math.exp(-(dy * dy + dx * dx) / (2 * 0.5**2)) for dx in (-1, 0, 1)] for dy in (-1, 0, 1)]
    norm = sum(map(sum, weights))

    def share(word: list[int], y: int, x: int) -> float:
        mine, *others = (sum(maps[token][y][x] for token in tokens) for tokens in (word, *words))
        return mine / sum(others)

    def mirrored(i: int, size: int) -> int:
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    def smoothed(word: list[int], y: int, x: int) -> float:
        total = 0.0
        for dy, dx in ((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            total += weights[dy + 1][dx + 1] * share(word, mirrored(y + dy, height), mirrored(x + dx, width))
        return total / norm

    owns = [max(smoothed(word, y, x) for y in range(height) for x in range(width)) for word in words]
    return min(owns) + 0.001 * sum(owns) / len(owns)


def test_the_formula_by_a_second_one():
    draw = torch.Generator().manual_seed(0)
    maps = (2 * torch.randn(4, 6, 5, 4, generator=draw)).softmax(1)
    words = [[[1], [2, 3]], [[1], [2], [4, 5]], [[3]], [[1, 5], [2], [3], [4]]]
    scores = neglect_scores(maps, words)
    assert scores.tolist() == pytest.approx([slow_score(m.tolist(), w) for m, w in zip(maps, words, strict=True)])
    assert scores[2].item() == pytest.approx(1.001), "one word owns everything"
    assert neglect_scores(maps[:1], [[]]).item() == 0


def test_a_neglected_word_lowers_the_score():
    both, one = torch.full((2, 3, 8, 8), 0.01)
    both[1, :, :4] = both[2, :, 4:] = 0.9  # a half each
    one[1] = 0.9
    good, bad = neglect_scores(torch.stack([both, one]), [[[1], [2]]] * 2).tolist()
    assert good > 0.95 and bad < 0.05


def dataset_of(folder, **settings) -> Dataset:
    small = CollectSettings(n=3, groups_per_shard=2, rungs=(0.2, 0.4), **settings)
    return collected(ShardMaker(tiny(), (ATTENTION, X0), small, ARGUMENTS), PROMPTS, folder, [Redness()])


def test_stored_maps_score_as_live_ones(tmp_path):
    table, scorer = table_of(dataset_of(tmp_path)), AttentionScorer(lambda: tiny().pipe.tokenizer)
    stored = scores_of(scorer, table, 0.4)
    sampler = SelectiveSampler(tiny(), "attention")
    result = sampler(PROMPTS[0], rungs=[0.4], seeds=seeds_of("", PROMPTS[0], 3), **ARGUMENTS)
    assert [c.scores[0].score for c in result.candidates] == pytest.approx(stored[0].tolist(), abs=2e-3)
    assert stored.shape == (2, 3) and len(set(stored[0].tolist())) == 3
    turned = torch.linalg.qr(torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)))[0]
    maps = table.tensors["map/attention/0.4"].float()
    mixed = {**table.tensors, "map/attention/0.4": torch.einsum("pc,gnchw->gnphw", turned, maps)}
    again = scores_of(scorer, replace(table, tensors=mixed, bases={"attention": turned}), 0.4)
    assert torch.allclose(again, stored, atol=1e-4)
    with pytest.raises(UsageError, match=r"no map/attention/0\.6; collect with --taps"):
        scores_of(scorer, table, 0.6)


def test_tokens_that_were_mixed_are_refused(tmp_path):
    dataset = dataset_of(tmp_path, map_channels=8)
    with pytest.raises(UsageError, match=r"its 16 channels were mixed into 8, .*--map-channels 16"):
        scores_of(AttentionScorer(lambda: tiny().pipe.tokenizer), dataset, 0.4)


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["probeselect", *arguments])
    main()


def test_the_command_line_on_the_backbone_that_ships(monkeypatch, tmp_path, capsys):
    usual = ["--steps", "5", "--device", "cpu", "-n", "2", "--rungs", "0.2"]
    run(monkeypatch, "generate", "a red car and a panda", "--scorer", "attention", *usual, "--out", str(tmp_path / "a"))
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["scorer"] == "attention"
    (tmp_path / "prompts.txt").write_text("a red car and a panda\n")
    taps = ["--taps", "up_blocks.2.resnets.1,x0,attention"]
    run(monkeypatch, "collect", "--prompts", str(tmp_path / "prompts.txt"), *taps, *usual, "--out", str(tmp_path / "d"))
    dataset = Dataset(tmp_path / "d")
    assert dataset.config.taps[2] == "attention"
    assert dataset.group(0)["map/attention/0.2"].shape == (2, 24, 8, 8)
    with pytest.raises(SystemExit):
        run(monkeypatch, "generate", "a dog", "--scorer", "attention", *usual, "--out", str(tmp_path / "b"))
    assert "'a dog' has less than two" in capsys.readouterr().err
