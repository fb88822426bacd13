"""One door from any output type to evaluators: stills and clips as PIL, numpy and torch."""

import math

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor
from PIL import Image

from probeselect.core.errors import UsageError
from probeselect.evaluators.base import FRAMES_JUDGED, Judgement, judge, judged
from probeselect.evaluators.pictures import frame_count, frames_of, is_clip, sampled, to_pil
from probeselect.evaluators.scene import SceneCheck

TYPES = ["pil", "np", "pt"]


def decoded(*size: int) -> torch.Tensor:
    """What a decoder gives: values from about -1 to 1, with some outside."""
    return 1.1 * (2 * torch.rand(*size, generator=torch.Generator().manual_seed(0)) - 1)


def grey(*levels: float) -> torch.Tensor:
    """A clip [F, 3, 4, 4] of plain grey frames."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


class Brightness:
    """An evaluator: the reward is the mean grey level from 0 to 1, and so is the only feature."""

    name = "brightness"

    def __init__(self):
        self.calls = []

    def features(self, images):
        return torch.tensor([[np.asarray(image.convert("L")).mean() / 255] for image in images])

    def score(self, features, prompts):
        assert len(features) == len(prompts)
        return features[:, 0]

    def __call__(self, images, prompts):
        self.calls.append(list(zip(images, prompts, strict=True)))
        return self.score(self.features(images), prompts)


class Explained(Brightness):
    def reasons(self, features, prompts):
        return [
            [f"{prompt}: {value:.1f}"] if value < 0.5 else []
            for (value,), prompt in zip(features, prompts, strict=True)
        ]


class Plain:
    """An evaluator without features, of the red value of the first pixel."""

    name, has_features = "plain", False

    def __call__(self, images, prompts):
        return torch.tensor([float(image.convert("RGB").getpixel((0, 0))[0]) for image in images])


@pytest.mark.parametrize("kind", TYPES)
def test_a_still_of_any_output_type_is_the_image_that_diffusers_makes(kind):
    processor, values = VaeImageProcessor(), decoded(1, 3, 6, 9)
    made = to_pil(processor.postprocess(values, output_type=kind)[0])
    assert made.size == (9, 6) and made.mode == "RGB"
    assert made.tobytes() == processor.postprocess(values, output_type="pil")[0].tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_a_clip_of_any_output_type_is_the_list_that_diffusers_makes(kind):
    processor, values = VideoProcessor(), decoded(1, 3, 5, 6, 9)
    made = to_pil(processor.postprocess_video(values, output_type=kind)[0])
    wanted = processor.postprocess_video(values, output_type="pil")[0]
    assert [frame.tobytes() for frame in made] == [frame.tobytes() for frame in wanted] and len(made) == 5


def test_bytes_one_and_four_channels_and_half_precision():
    still = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(to_pil(still), still)
    assert np.array_equal(to_pil(torch.from_numpy(still).movedim(-1, 0)), still)
    assert to_pil(np.zeros((2, 4, 1))).mode == "L" and to_pil(torch.zeros(4, 2, 4)).mode == "RGBA"
    assert to_pil(torch.full((3, 1, 1), 0.5, dtype=torch.bfloat16)).getpixel((0, 0)) == (128, 128, 128)


def test_pil_images_are_handed_on_and_nothing_is_changed():
    image = Image.new("P", (3, 3))
    assert to_pil(image) is image and to_pil([image, image])[1] is image
    values = torch.tensor([math.nan, math.inf, -math.inf]).view(3, 1, 1)
    assert to_pil(values).getpixel((0, 0)) == (0, 0, 0) and values.isnan().any() and values.isinf().any()


def test_what_is_a_clip():
    stills = [Image.new("RGB", (2, 2)), np.zeros((2, 2, 3)), torch.zeros(3, 2, 2)]
    clips = [[stills[0]], (stills[0],), [stills[1]], np.zeros((1, 2, 2, 3)), torch.zeros(1, 3, 2, 2)]
    assert not any(map(is_clip, stills)) and all(map(is_clip, clips))
    assert [frame_count(clip) for clip in clips] == [1] * 5
    assert all(isinstance(to_pil(clip), list) for clip in clips)


def test_frames_are_sampled_evenly_with_both_ends():
    assert sampled(81, 3) == [0, 40, 80] and sampled(5, 8) == [0, 1, 2, 3, 4] and sampled(5, 1) == [0]
    assert sampled(9, 8)[0] == 0 and sampled(9, 8)[-1] == 8 and len(set(sampled(9, 8))) == 8
    levels = [frame.getpixel((0, 0))[0] for frame in frames_of(grey(*(i / 255 for i in range(81))), most=3)]
    assert levels == [0, 40, 80]
    assert len(frames_of(Image.new("RGB", (2, 2)), most=3)) == 1


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (torch.zeros(16, 4, 4), "[16, 4, 4]: is no picture [C, H, W]"),
        (torch.zeros(5, 16, 4, 4), "[16, 4, 4]: is no picture [C, H, W]"),
        (torch.zeros(64, 8), "[64, 8]: is no picture"),
        (np.zeros((3, 4, 4, 8)), "[4, 4, 8]: is no picture [H, W, C]"),
        (4 * decoded(4, 8, 8), "are no picture, one has values from 0 to 1; latents"),
        (np.full((4, 4, 3), 255.0), "values from 0 to 255 are no picture"),
        (np.zeros((4, 4, 3), dtype=np.int64), "a picture of int64: need floats from 0 to 1, or uint8"),
        ([], "a clip without frames"),
        (torch.zeros(0, 3, 4, 4), "a clip without frames"),
        ("seed-7.png", "str: is no picture"),
        (None, "NoneType: is no picture"),
    ],
)
def test_what_is_no_picture_is_one_clear_line(picture, says):
    with pytest.raises(UsageError) as error:
        to_pil(picture)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_at_least_one_frame():
    with pytest.raises(UsageError, match="most: got 0, must be at least 1"):
        frames_of(grey(0.1, 0.2), most=0)


@pytest.mark.parametrize("evaluator", [Brightness(), Plain()], ids=["features", "plain"])
def test_rewards_do_not_depend_on_the_output_type(evaluator):
    processor, values = VaeImageProcessor(), decoded(3, 3, 6, 9)
    by_type = [
        judge(evaluator, list(processor.postprocess(values, output_type=kind)), ["a", "b", "c"]) for kind in TYPES
    ]
    for features, rewards in by_type:
        assert torch.equal(rewards, by_type[0][1])
        assert (features is None) == isinstance(evaluator, Plain)


def test_the_reward_of_a_clip_is_the_mean_of_its_sampled_frames():
    evaluator = Brightness()
    levels = [i / 255 for i in range(81)]
    levels[12] = 1.0  # is not among those that are judged
    found = judged(evaluator, [grey(*levels), grey(0.6, 1.0, 0.2)], ["a", "b"])
    chosen = sampled(81, FRAMES_JUDGED)
    assert len(chosen) == FRAMES_JUDGED == 8 and 12 not in chosen
    torch.testing.assert_close(found.rewards, torch.tensor([np.mean(chosen) / 255, 0.6], dtype=torch.float64))
    assert found.features is None and judge(evaluator, [grey(0.5)], ["a"])[0] is None
    assert [prompt for _, prompt in evaluator.calls[0]] == ["a"] * 8 + ["b"] * 3  # all clips in one call


def test_the_worst_frame_of_a_clip_is_named():
    levels = [0.8] * 81
    levels[sampled(81, 8)[2]] = 0.2
    found = judged(Explained(), [grey(*levels), grey(0.9)], ["a", "b"])
    assert found.reasons == [["worst frame 24 of 81: 0.2"], ["worst frame 1 of 1: 0.902"]]


def test_a_frame_without_a_reward_leaves_its_clip_without_one():
    class Fails(Brightness):
        def score(self, features, prompts):
            return features[:, 0].where(features[:, 0] > 0.5, torch.nan)

    found = judged(Fails(), [grey(0.9, 0.8, 0.1, 0.9), grey(0.9, 0.7)], ["a", "b"])
    assert found.rewards.isnan().tolist() == [True, False]
    assert found.reasons[0] == ["worst frame 3 of 4: no reward"]


def test_reasons_and_features_of_stills():
    found = judged(Explained(), [grey(0.2)[0], grey(0.8)[0]], ["dim", "bright"])
    assert isinstance(found, Judgement) and found.features.shape == (2, 1)
    assert found.reasons == [["dim: 0.2"], []]
    assert judged(Plain(), [Image.new("RGB", (2, 2))], ["a"]).reasons == [[]]


def test_stills_among_clips():
    found = judged(Explained(), [grey(0.2)[0], grey(0.4, 0.6)], ["a", "b"])
    torch.testing.assert_close(found.rewards, torch.tensor([0.2, 0.5], dtype=torch.float64))
    assert found.features is None and found.reasons == [[], ["worst frame 1 of 2: 0.4"]]


def test_the_embedded_evaluator_through_the_door():
    from probeselect.evaluators.table import load_evaluator

    evaluator = load_evaluator("scene-check")
    assert isinstance(evaluator, SceneCheck)
    image = Image.fromarray((255 * decoded(64, 64, 3).abs().clamp(0, 1)).byte().numpy())
    still = judged(evaluator, [image], ["a red dog"])
    clip = judged(evaluator, [[image, image]], ["a red dog"])
    torch.testing.assert_close(still.rewards, clip.rewards)
    assert still.reasons == evaluator.reasons(still.features, ["a red dog"])
    assert clip.reasons[0][0].startswith("worst frame 1 of 2: ")


def test_a_prompt_for_each_picture():
    with pytest.raises(UsageError, match="prompts: got 1 for 2 images"):
        judged(Brightness(), [grey(0.1), grey(0.2)], ["a"])
