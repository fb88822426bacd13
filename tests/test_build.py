"""What can be wrong in research/embedded without anybody seeing it: truths that models are trained on."""

import random

import pytest
import torch

from probeselect.embedded.captions import COLOURS, NOUNS, parse, split_of
from research.embedded.denoiser import another_caption, object_mask
from research.embedded.judges import PATCH, PATCHES, patch_truth, wanted_sides, whole_truth, wrong_captions
from research.embedded.optim import orthogonalise
from research.embedded.render import Placed, Scene
from research.embedded.state import Sample, draw_sample


def sample_of(*objects: Placed, caption: str = "two dogs and a red car") -> Sample:
    return Sample(Scene(parse(caption), objects, "white"), caption, torch.zeros(3, 64, 64))


SAMPLE = sample_of(Placed("dog", None, 12, 12, 20), Placed("dog", None, 52, 12, 20), Placed("car", "red", 40, 50, 24))


def test_the_truth_of_patches():
    nouns, colours = (values.view(PATCHES, PATCHES) for values in patch_truth([SAMPLE]))
    row, column = 50 // PATCH, 40 // PATCH
    assert nouns[row, column] == NOUNS.index("car") + 1 and colours[row, column] == COLOURS.index("red") + 1
    assert nouns[1, 1] == NOUNS.index("dog") + 1 and colours[1, 1] == 0
    assert nouns[4, 0] == 0


def test_the_truth_of_the_whole_picture():
    counts, places = whole_truth([SAMPLE])
    dog, car = NOUNS.index("dog"), NOUNS.index("car")
    assert counts[0, dog] == 2 and counts[0, car] == 1 and counts.sum() == 3
    assert places[0, dog].tolist() == pytest.approx([0.0, 12 / 32 - 1])  # midway between the two
    assert places[0, car].tolist() == pytest.approx([40 / 32 - 1, 50 / 32 - 1])
    assert places[0, NOUNS.index("frog")].tolist() == [0, 0]


def test_the_sides_that_a_caption_wants():
    frog, apple = NOUNS.index("frog"), NOUNS.index("apple")
    texts = [
        f"a frog {relation} an apple" for relation in ("to the left of", "to the right of", "above", "below", "and")
    ]
    sides = wanted_sides([parse(text) for text in texts])
    assert sides[:, frog].tolist() == [[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]]
    assert torch.equal(sides[:, apple], -sides[:, frog])
    assert sides.abs().sum() == 8


def test_the_mask_covers_the_objects_and_little_else():
    mask = object_mask(SAMPLE.scene.objects)
    assert mask[3, 3] and mask[12, 10] and not mask[8, 1]
    assert mask.float().mean() < 0.5


def test_wrong_captions_say_something_else_in_blocks_of_one_per_picture():
    samples = [draw_sample(random.Random(i)) for i in range(8)]
    texts = wrong_captions(samples, random.Random(0))
    assert len(texts) % len(samples) == 0
    for i, text in enumerate(texts):
        assert parse(text) != parse(samples[i % len(samples)].caption)


def test_a_caption_said_anew_means_the_same_and_stays_in_its_split():
    rng = random.Random(1)
    for i in range(50):
        text = draw_sample(random.Random(i)).caption
        again = another_caption(text, rng)
        assert parse(again) == parse(text) and split_of(again) == "train"


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalised_singular_values_are_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.3


def test_one_token_of_zeros_stands_for_all_that_the_pipeline_appends():
    """The MMDiT trains on 25 text tokens and samples with 280: the same function."""
    from diffusers import AutoencoderTiny
    from transformers import CLIPTextModel

    from probeselect.embedded import WEIGHTS
    from probeselect.embedded.attention import ZERO_TOKENS, ZeroTokensAttention
    from research.embedded import mmdit
    from research.embedded.text import text_config

    torch.manual_seed(0)
    module = mmdit.FlowGenerator(CLIPTextModel(text_config()))
    for parameter in module.transformer.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    vae = AutoencoderTiny.from_pretrained(WEIGHTS / "backbone", subfolder="vae")
    encode = mmdit.assemble(vae, module).encode_prompt
    noisy, sigma, texts = torch.randn(2, 4, 16, 16), torch.rand(2), ["two red apples", ""]
    with torch.no_grad():
        states, _, pooled, _ = encode(texts, None, None, do_classifier_free_guidance=False, device="cpu")
        stock = module(noisy, sigma, states, pooled)
        module.transformer.set_attn_processor(ZeroTokensAttention(24))
        ours = module(noisy, sigma, *mmdit.encoded(encode, texts))
    assert states.shape[1] == 24 + ZERO_TOKENS
    assert torch.allclose(stock, ours, atol=1e-4) and stock.std() > 0.1


def test_the_teacher_turns_a_diffusion_into_a_flow():
    """A U-Net that knew picture and noise would teach exactly noise - picture, at every noise level."""
    from types import SimpleNamespace

    from probeselect.embedded import SHIPPED
    from research.embedded.mmdit import Teacher

    teacher = Teacher(SHIPPED["embedded"].pipeline)
    clean, noise = torch.randn(9, 4, 16, 16), torch.randn(9, 4, 16, 16)
    sigma = torch.linspace(0.02, 0.98, 9)
    kept = teacher.pipe.scheduler.alphas_cumprod.double()

    class Knowing(torch.nn.Module):
        def forward(self, noisy, timesteps, _states):
            low = timesteps.floor().long()
            share = (timesteps - low).double()
            angle = torch.lerp(*(torch.atan2((1 - kept[t]).sqrt(), kept[t].sqrt()) for t in (low, low + 1)), share)
            cos, sin = angle.cos().float().view(-1, 1, 1, 1), angle.sin().float().view(-1, 1, 1, 1)
            assert torch.allclose(noisy, cos * clean + sin * noise, atol=1e-5)  # the latent of that timestep
            return SimpleNamespace(sample=cos * noise - sin * clean)

    teacher.pipe.unet = Knowing()
    assert torch.allclose(teacher(torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1)), sigma, ["a dog"] * 9),
                          noise - clean, atol=1e-4)  # fmt: skip


def test_the_study_sees_what_collecting_would_have_kept():
    """A fixed projection of all channels, done afterwards, is the one that `collect` does."""
    from probeselect.data.table import Table
    from probeselect.probe.maps import orthonormal, project, reduced
    from research.embedded.groups import TAPS
    from research.embedded.study import Bench
    from research.embedded.variants import Maps

    bench, taps = Bench.__new__(Bench), TAPS["embedded"]
    bench.model, channels = "embedded", 20
    maps = {f"map/{tap}/0.2": torch.randn(3, 5, channels, 8, 8).half() for tap in taps}
    bench.train, bench.full = Table(["a", "b", "c"], maps), {tap: torch.eye(channels) for tap in taps}
    for kept in (Maps(6), Maps(6, side=4), Maps(None), Maps(6, "pca")):
        bench.bases = {kept: bench._bases(kept)}
        seen = bench.seen(bench.train, kept).tensors[f"map/{taps[1]}/0.2"]
        assert seen.shape == (3, 5, kept.channels or channels, min(kept.side, 8), min(kept.side, 8))
    whole = maps[f"map/{taps[1]}/0.2"].flatten(0, 1)
    want = reduced(project(orthonormal(6, channels, seed=1), whole), 4).half()
    bench.bases = {Maps(6, side=4): bench._bases(Maps(6, side=4))}
    found = bench.seen(bench.train, Maps(6, side=4)).tensors[f"map/{taps[1]}/0.2"][torch.arange(3)]
    assert torch.equal(found.flatten(0, 1), want)
    principal = bench._bases(Maps(6, "pca"))[taps[0]]
    assert torch.allclose(principal @ principal.T, torch.eye(6), atol=1e-4)
