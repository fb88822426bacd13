"""Taps of every family: right rows, right order, right place, whatever the pipeline.

No test trusts the table of families. Which rows are conditional is found from the text that the denoiser is given: it
is the text of a run without guidance. Where a place lies in a map is found by disturbing that place of the latents.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from probeselect.backbones.families import FAMILIES, Family, Layout, family_of, prompt_keywords
from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import X0, Tap, TapReader, TokenGrid, conditional_rows
from probeselect.core.errors import ProbeSelectError, UsageError

SEEDS = [3, 5, 8]
PROMPTS = ["red cat", "dog", "two birds"]
# Families that pad texts to the longest of the batch and mask nothing: only texts of one length are alike in any batch.
# The padding of Qwen-Image 2.1 is masked, but the image's positions count from its end.
ONE_LENGTH = ["red cat", "big dog", "one hen"]
EQUALLY_LONG = {"CogView4": ONE_LENGTH, "Kandinsky 5": ONE_LENGTH, "Qwen-Image 2.1": ONE_LENGTH, "OmniGen": ONE_LENGTH}
# What the text encoder sees of a prompt of GLM-Image is what stands in quotes.
EQUALLY_LONG["GLM-Image"] = [f"'{text}'" for text in ONE_LENGTH]
# family -> channels of the default tap, latent size over map size
MAPS = dict.fromkeys(TINY, (16, 2))
MAPS |= {"SD 1/2": (8, 1), "LCM": (8, 1), "SDXL": (8, 2), "Kolors": (8, 2), "Sana": (16, 1), "Sana Sprint": (16, 1)}
MAPS |= {"Kandinsky 2.2": (16, 1), "Kandinsky 3": (8, 2), "DeepFloyd IF": (8, 1)}
MAPS |= {"InstructPix2Pix": (8, 1), "InstructPix2Pix XL": (8, 2)}
MAPS |= dict.fromkeys(["Qwen-Image 2.1", "HunyuanImage 2.1", "Bria FIBO", "ERNIE-Image", "LTX-Video"], (16, 1))
MAPS |= {"Cosmos 2": (32, 2), "Wan": (24, 2), "CogVideoX": (32, 2), "HunyuanVideo": (20, 1)}
FRAMES = dict.fromkeys(["Wan", "LTX-Video", "CogVideoX", "HunyuanVideo"], 3) | {"Mochi": 2}  # of the latents
# With guidance it runs for one picture alone: its timesteps are for two rows.
ONE_AT_A_TIME = ["PRX"]
# Guidance is an input of the denoiser, or a denoiser that never sees the prompt.
ONE_CALL = ["LCM", "Sana Sprint", "Ideogram 4"]

every_family = pytest.mark.parametrize("name", TINY)


class FirstStepDone(Exception):
    """Ends a run when the scheduler is called for the first time."""


@cache
def backbone(name: str) -> Backbone:
    return load_backbone(TINY[name][0]())


def prompts_for(name: str) -> list[str]:
    return PROMPTS[:1] if name in ONE_AT_A_TIME else EQUALLY_LONG.get(name, PROMPTS)


def run_first_step(name: str, prompts: list[str], seeds: list[int], guided: bool, **more: Any) -> None:
    pipe = backbone(name).pipe
    call = {**TINY[name][1], **more}
    # the prior of Kandinsky 2.2 takes negative prompts or one generator per candidate, not both
    takes_negative = "negative_prompt" in prompt_keywords(pipe) and name != "Kandinsky 2.2"
    if guided and takes_negative:
        call["negative_prompt"] = ["ugly"] * len(prompts)
    if not guided:
        call["true_cfg_scale" if "true_cfg_scale" in call else "guidance_scale"] = 1.0 if name == "PRX" else 0.0
    if name == "HiDream":  # its pictures have the area of the default size
        pipe.default_sample_size = 1.000001 * math.sqrt(call["height"] * call["width"]) / 2
    if name == "HunyuanImage 2.1":
        call.pop("guidance_scale", None)
        switch = pipe.guider.enable if guided else pipe.guider.disable
        switch()

    def stop(*args: Any, **kwargs: Any) -> None:
        raise FirstStepDone

    pipe.scheduler.step = stop
    try:
        with pytest.raises(FirstStepDone):
            pipe(prompt=prompts, generator=[torch.Generator().manual_seed(seed) for seed in seeds], **call)
    finally:
        del pipe.scheduler.step


def maps_of(
    name: str, prompts: list[str], seeds: list[int], guided: bool = True, taps: list[str] | None = None, **more: Any
) -> dict[str, Tensor]:
    """Maps of the first step, {tap: [n, C, H, W]}."""
    parsed = None if taps is None else [Tap.parse(text, backbone(name).family) for text in taps]
    with TapReader(backbone(name), parsed) as reader:
        run_first_step(name, prompts, seeds, guided, **more)
        return reader.read(len(prompts))


def the_map(name: str, prompts: list[str], seeds: list[int], **more: Any) -> Tensor:
    """[n, C, H, W] of the default tap"""
    (only,) = maps_of(name, prompts, seeds, **more).values()
    return only


def wide(name: str) -> dict[str, Any]:
    """Keywords for latents of 8 x 16."""
    call = TINY[name][1]
    more: dict[str, Any] = {"width": 2 * call["width"]} if "width" in call else {}
    if "image" in call:
        more["image"] = call["image"].resize((32, 16))
    if "prior_token_ids" in call:
        more["prior_token_ids"] = torch.arange(32)[None] % 16
    return more


def texts_of(denoiser: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    """What tells the prompts apart in one denoiser call, row by row."""
    given = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs).arguments
    names = ("encoder_hidden_states", "encoder_hidden_states_t5", "cap_feats", "text_bth", "input_ids")
    texts = next((given[name] for name in names if given.get(name) is not None), None)
    return list(given["added_cond_kwargs"]["image_embeds"] if texts is None else texts)


@contextmanager
def watching_texts(denoiser: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Per denoiser call the texts of its rows."""
    calls: list[list[Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(texts_of(module, args, kwargs))

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    yield calls
    handle.remove()


@contextmanager
def numbered_rows(module: nn.Module, calls: list[Any]) -> Iterator[None]:
    """Every row of the module's output becomes 100 * call + row."""

    def number(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(number(element) for element in value)
        if not isinstance(value, Tensor):
            return value
        rows = 100.0 * (len(calls) - 1) + torch.arange(len(calls[-1]))
        first = 0 if len(value) == len(rows) else 1  # ERNIE-Image has sequences of rows
        return rows.view([len(rows) if axis == first else 1 for axis in range(value.ndim)]).expand_as(value)

    handle = module.register_forward_hook(lambda module, args, output: number(output))
    yield
    handle.remove()


def check_rows(name: str, **more: Any) -> None:
    bb, prompts = backbone(name), prompts_for(name)
    seeds = SEEDS[: len(prompts)]
    with watching_texts(bb.denoiser) as unguided:
        run_first_step(name, prompts, seeds, guided=False)
    if name == "OmniGen":  # always guided, with one negative prompt for all: its rows are alike
        unguided = [[row for row in unguided[0] if sum(torch.equal(row, other) for other in unguided[0]) == 1]]
    assert [len(call) for call in unguided] == [len(seeds)], "without guidance: one call, one row per candidate"
    module = bb.taps[0].module(bb.denoiser)
    with watching_texts(bb.denoiser) as calls, numbered_rows(module, calls):
        rows = the_map(name, prompts, seeds, **more)  # [n, C, H, W], constant in each row
    assert sum(len(call) for call in calls) >= len(seeds) * (1 if name in ONE_CALL else 2), "guidance was on"
    assert torch.equal(rows.amin((1, 2, 3)), rows.amax((1, 2, 3)))
    for number, text in zip(rows[:, 0, 0, 0].int().tolist(), unguided[0], strict=True):
        found = calls[number // 100][number % 100]
        assert found.shape == text.shape and torch.allclose(found, text, atol=1e-5)


@every_family
def test_conditional_rows_come_in_candidate_order(name: str) -> None:
    check_rows(name)


def test_the_skip_layer_call_of_sd3_is_not_the_one_read() -> None:
    check_rows("SD3", skip_guidance_layers=[1], skip_layer_guidance_start=-1.0)


@every_family
def test_a_candidate_has_the_same_map_alone_and_in_a_batch(name: str) -> None:
    prompts, guided = EQUALLY_LONG.get(name, PROMPTS), name not in ONE_AT_A_TIME
    channels, ratio = MAPS[name]
    together = the_map(name, prompts, SEEDS, guided=guided)
    assert together.shape == (3, channels, 8 // ratio, 8 // ratio)
    for row, prompt, seed in zip(together, prompts, SEEDS, strict=True):
        assert torch.allclose(the_map(name, [prompt], [seed], guided=guided)[0], row, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2), "the comparison would not see a swap"


@every_family
def test_guidance_does_not_change_the_map_of_the_first_step(name: str) -> None:
    if name in ONE_CALL:
        pytest.skip("there is one call either way")
    prompts = prompts_for(name)
    guided, unguided = (the_map(name, prompts, SEEDS[: len(prompts)], guided=on, **wide(name)) for on in (True, False))
    channels, ratio = MAPS[name]
    assert guided.shape == unguided.shape == (len(prompts), channels, 8 // ratio, 16 // ratio)
    assert torch.allclose(guided, unguided, atol=1e-4)


def disturb(latents: Any, family: Family, frames: int) -> Any:
    """Latents of 8 x 16, or tokens of 4 x 8 or 8 x 16 (with text before them), with a peak in every frame.

    It lies in the second quarter from above and the sixth eighth from the left.
    """
    if isinstance(latents, list):
        return [disturb(latent, family, frames) for latent in latents]
    latents = latents.clone()
    if latents.ndim == 3:
        height = 8 if latents.shape[1] == frames * 8 * 16 else 4
        own = latents[:, -frames * height * 2 * height :].unflatten(1, (frames, height, 2 * height))
        own[:, :, height // 4 : height // 2, height * 10 // 8 : height * 12 // 8] += 30
    elif family.name == "Kandinsky 5":  # channels last
        latents[..., 2:4, 10:12, :] += 30
    else:
        latents[..., 2:4, 10:12] += 30
    return latents


@contextmanager
def disturbed_latents(bb: Backbone, frames: int) -> Iterator[None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (disturb(args[0], bb.family, frames), *args[1:]), kwargs
        first = "sample" if "sample" in kwargs else "hidden_states"
        return args, {**kwargs, first: disturb(kwargs[first], bb.family, frames)}

    handle = bb.denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    yield
    handle.remove()


# Blocks other than the default tap whose outputs hold the image at another place.
OTHER_TAPS = {
    "FLUX.1": ["single_transformer_blocks.1"],
    "FLUX.2": ["single_transformer_blocks.1"],
    "Chroma": ["single_transformer_blocks[1]"],
    "Z-Image": ["noise_refiner.0:first"],
    "AuraFlow": ["joint_transformer_blocks.0"],
    "HiDream": ["double_stream_blocks.0"],
    "HunyuanImage 2.1": ["transformer_blocks.0"],
    "Bria": ["transformer_blocks.0"],
    "Bria FIBO": ["transformer_blocks.0"],
    "Ovis-Image": ["transformer_blocks.0"],
    "LongCat-Image": ["transformer_blocks.0"],
    "Wan": ["patch_embedding"],
    "HunyuanVideo": ["transformer_blocks.0"],
    "SD 1/2": ["down_blocks.0", "up_blocks.2", "up_blocks.1.attentions.0"],
    "SD3": ["transformer_blocks.0", "transformer_blocks.1"],
}


@every_family
def test_a_map_lies_as_the_image_does(name: str) -> None:
    bb = backbone(name)
    taps = [tap.name for tap in bb.taps] + OTHER_TAPS.get(name, [])
    prompts = prompts_for(name)
    clean = maps_of(name, prompts, SEEDS[: len(prompts)], taps=taps, **wide(name))
    with disturbed_latents(bb, FRAMES.get(name, 1)):
        disturbed = maps_of(name, prompts, SEEDS[: len(prompts)], taps=taps, **wide(name))
    assert len(clean) == len(taps)
    for tap, before in clean.items():
        height, width = before.shape[-2:]
        assert width == 2 * height
        change = (disturbed[tap] - before).abs().sum(1)  # [n, H, W]
        slack = 1 if bb.family.denoiser == "unet" else 0  # convolutions spread it
        for peak in change.flatten(1).argmax(1).tolist():
            y, x = divmod(peak, width)
            assert height // 4 - slack <= y < height // 2 + slack, (tap, y, x)
            assert width * 5 // 8 - slack <= x < width * 6 // 8 + slack, (tap, y, x)


class Toy(nn.Module):
    """A denoiser of no known family, whose block answers what a test wants."""

    config = SimpleNamespace(patch_size=2)

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.forward = answer  # type: ignore[assignment]

    def forward(self, hidden_states: Tensor, repeat: int = 1) -> Tensor:
        for _ in range(repeat):
            self.block(hidden_states)
        return hidden_states


def toy_reader(answer: Callable[[Tensor], Any], tap: str = "block") -> TapReader:
    denoiser = Toy(answer)
    family = family_of(SimpleNamespace(transformer=denoiser))
    bb = SimpleNamespace(denoiser=denoiser, family=family, taps=(Tap.parse(tap, family),))
    return TapReader(bb)


def call_toy(reader: TapReader, latents: Tensor, **more: Any) -> None:
    reader._backbone.denoiser(latents, **more)


def read_toy(answer: Callable[[Tensor], Any], tap: str = "block", rows: int = 2) -> Tensor:
    with toy_reader(answer, tap) as reader:
        call_toy(reader, LATENTS[:rows])
        return reader.read(2)[tap]


LATENTS = torch.randn(6, 3, 4, 6)  # tokens of 2 x 3
MAP = pixel_unshuffle(LATENTS, 2)  # [6, 12, 2, 3]


def tokens(latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)  # [rows, 6, 12]


def text(latents: Tensor, length: int) -> Tensor:
    return torch.zeros(len(latents), length, 12)


@pytest.mark.parametrize(
    ("answer", "tap"),
    [
        (tokens, "block"),
        (lambda x: pixel_unshuffle(x, 2), "block"),
        (lambda x: (text(x, 4), tokens(x)), "block"),
        (lambda x: (tokens(x), None), "block"),
        (lambda x: torch.cat([text(x, 4), tokens(x)], 1), "block:last"),
        (lambda x: torch.cat([tokens(x), text(x, 4)], 1), "block:first"),
        (lambda x: (text(x, 6), tokens(x)), "block:1"),
        (lambda x: (text(x, 6), torch.cat([text(x, 1), tokens(x)], 1)), "block:1:last"),
    ],
)
def test_the_layout_of_an_unlisted_model_is_found_or_told(answer: Callable[[Tensor], Any], tap: str) -> None:
    assert torch.equal(read_toy(answer, tap), MAP[:2])


@pytest.mark.parametrize(
    ("answer", "tap", "says"),
    [
        (lambda x: torch.cat([text(x, 4), tokens(x)], 1), "block", "[2, 10, 12] for 2 x 3 image tokens"),
        (lambda x: (text(x, 6), tokens(x)), "block", "block:0 or :1"),
        (lambda x: (text(x, 4), tokens(x)), "block:2", "block:0 or :1"),
        (lambda x: text(x, 5), "block:last", "[2, 5, 12]"),
        (lambda x: "nothing", "block", "str"),
    ],
)
def test_an_ambiguous_layout_is_an_error_that_says_what_to_pass(answer: Any, tap: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        read_toy(answer, tap)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_unlisted_model_has_its_conditional_rows_last() -> None:
    assert torch.equal(read_toy(tokens, rows=4), MAP[2:4])
    with pytest.raises(ProbeSelectError, match="6 rows for 2 candidates"):
        read_toy(tokens, rows=6)


@pytest.mark.parametrize(("family", "rows"), [("SDXL", 5), ("SDXL", 1), ("FLUX.1", 4), ("LCM", 4), ("OmniGen", 8)])
def test_rows_that_do_not_fit_the_family_are_refused(family: str, rows: int) -> None:
    row = next(f for f in FAMILIES if f.name == family)
    with pytest.raises(ProbeSelectError, match=f"{rows} rows for 2 candidates"):
        conditional_rows(torch.zeros(rows, 1), 2, row)


def test_of_three_parts_the_conditional_one_is_kept() -> None:
    row = next(f for f in FAMILIES if f.name == "InstructPix2Pix")
    rows = torch.arange(6.0)[:, None]
    assert conditional_rows(rows, 2, row).flatten().tolist() == [0, 1]
    assert conditional_rows(rows[:4], 2, row).flatten().tolist() == [0, 1]


def test_a_map_of_a_clip_is_the_mean_over_its_frames() -> None:
    clip = torch.stack([LATENTS, 3 * LATENTS], 2)  # [6, 3, 2, 4, 6]
    grid = TokenGrid(4, 6, 48, None, 2)
    sequence = clip.flatten(2).transpose(1, 2)  # frame by frame
    tap = Tap("block", "block", Layout())
    for output in (sequence, clip, (sequence, None)):
        assert torch.allclose(tap.map(output, grid), 2 * LATENTS)
    behind = torch.cat([torch.zeros(6, 5, 3), sequence], 1)
    assert torch.allclose(Tap("block", "block", Layout(image="last")).map(behind, grid), 2 * LATENTS)
    assert torch.allclose(Tap("block", "block", Layout(rows=1)).map(sequence.transpose(0, 1), grid), 2 * LATENTS)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.latents != "NCFHW"] + [FAMILIES[0]])
def test_latents_of_clips_become_maps_by_their_axes(family: Family) -> None:
    clip = torch.stack([LATENTS, 3 * LATENTS], 2)
    reader = TapReader(SimpleNamespace(denoiser=None, family=family, taps=()))
    assert torch.allclose(
        reader.latent_map(clip.permute(["NCFHW".index(axis) for axis in family.latents])), 2 * LATENTS
    )


def test_reference_images_behind_the_image_are_left_out() -> None:
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3))
    reference = torch.cartesian_prod(torch.tensor([1]), torch.arange(4), torch.arange(4))
    flux = backbone("FLUX.1").denoiser
    for img_ids in (torch.cat([ids, reference]), torch.cat([ids, reference]).expand(2, -1, -1)):
        assert TokenGrid.of(flux, (None,), {"img_ids": img_ids}) == TokenGrid(2, 3, 6 + 16)
    qwen = backbone("Qwen-Image").denoiser
    grid = TokenGrid.of(qwen, (None,), {"img_shapes": [[(1, 2, 3), (1, 4, 4)]] * 2})
    assert grid == TokenGrid(2, 3, 6 + 16)
    image, behind = tokens(LATENTS), text(LATENTS, 16)
    assert torch.equal(Tap("a", "a", Layout()).map(torch.cat([image, behind], 1), grid), MAP)
    joint = torch.cat([text(LATENTS, 5), image, behind], 1)
    assert torch.equal(Tap("a", "a", Layout(image="last")).map(joint, grid), MAP)


def test_an_input_without_a_grid_is_an_error_that_names_the_model() -> None:
    with pytest.raises(ProbeSelectError, match=r"Toy.*img_ids"):
        TokenGrid.of(Toy(tokens), (torch.zeros(2, 6, 12),), {})


def test_latents_as_the_scheduler_sees_them_become_maps() -> None:
    with toy_reader(tokens) as reader:
        call_toy(reader, LATENTS)
        assert torch.equal(reader.latent_map(tokens(LATENTS)), MAP)
        assert torch.equal(reader.latent_map(LATENTS), LATENTS)
        assert torch.equal(reader.latent_map(LATENTS[:, :, None]), LATENTS)


def test_a_wrong_name_lists_near_matches() -> None:
    with pytest.raises(UsageError, match=r"no module 'up_blocks.2.resnet.1'.*up_blocks\.2\.resnets\.1"):
        maps_of("SD 1/2", PROMPTS, SEEDS, taps=["up_blocks[2].resnet[1]"])
    for text_ in ("", "a:b", "block:1:2", "block:last:1"):
        with pytest.raises(UsageError, match="is not a module path"):
            Tap.parse(text_, FAMILIES[0])


def test_brackets_and_dots_are_one_name() -> None:
    assert Tap.parse(" up_blocks[2].resnets[1] ", FAMILIES[0]) == Tap.parse("up_blocks.2.resnets.1", FAMILIES[0])


def test_reading_what_has_not_fired_is_an_error() -> None:
    with toy_reader(tokens) as reader:
        with pytest.raises(ProbeSelectError, match=r"fired 0 times.*0 calls since clear, reader on"):
            reader.read(6)
        reader.enabled = False
        call_toy(reader, LATENTS)
        with pytest.raises(ProbeSelectError, match="1 calls since clear, reader off"):
            reader.read(6)
        reader.enabled = True
        reader.clear()
        call_toy(reader, LATENTS)
        assert torch.equal(reader.read(6)["block"], MAP)
        reader.clear()
        with pytest.raises(ProbeSelectError, match="fired 0 times"):
            reader.read(6)
        with pytest.raises(ProbeSelectError, match="nothing to read"):
            reader.latent_map(tokens(LATENTS))
        call_toy(reader, LATENTS, repeat=2)
        with pytest.raises(ProbeSelectError, match="fired 2 times instead of once"):
            reader.read(6)


def test_only_the_first_call_after_clear_counts() -> None:
    with toy_reader(tokens) as reader:
        call_toy(reader, LATENTS)
        call_toy(reader, -LATENTS)
        assert torch.equal(reader.read(6)["block"], MAP)


def test_hooks_are_gone_afterwards_also_when_an_exception_passes() -> None:
    reader = toy_reader(tokens)
    denoiser = reader._backbone.denoiser
    with pytest.raises(ZeroDivisionError), reader:
        call_toy(reader, LATENTS)
        assert denoiser._forward_pre_hooks and denoiser.get_submodule("block")._forward_hooks
        raise ZeroDivisionError
    assert not denoiser._forward_pre_hooks and not denoiser.get_submodule("block")._forward_hooks
    with pytest.raises(UsageError), toy_reader(tokens, "blok") as reader:
        pass
    assert not reader._backbone.denoiser._forward_pre_hooks


def test_what_is_kept_does_not_change_with_the_models_own_tensor() -> None:
    output = tokens(LATENTS)
    with toy_reader(lambda latents: output) as reader:
        call_toy(reader, LATENTS)
        output.zero_()
        assert torch.equal(reader.read(6)["block"], MAP)


def test_x0_is_left_to_the_sampler_and_a_tap_named_twice_is_one() -> None:
    reader = toy_reader(tokens)
    reader = TapReader(reader._backbone, [X0, *reader.taps, *reader.taps])
    with reader:
        call_toy(reader, LATENTS)
        assert list(reader.read(6)) == ["block"]


def test_a_replaced_forward_does_not_matter() -> None:
    with toy_reader(tokens) as reader:
        denoiser = reader._backbone.denoiser
        usual = denoiser.forward
        denoiser.forward = lambda *args, **kwargs: usual(*args, **kwargs)  # type: ignore[method-assign]
        call_toy(reader, LATENTS)
        assert torch.equal(reader.read(6)["block"], MAP)
