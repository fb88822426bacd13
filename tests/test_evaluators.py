"""Evaluators against their formulas, computed here from the raw models of transformers, tiny and random.

The expected text tokens and pixels are made by hand, one pair at a time and without padding, so tokenizing,
padding, truncation, resizing and batching are all on trial.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators.base import Evaluator, has_features, judge
from probeselect.evaluators.table import EVALUATORS, load_evaluator, off_the_typical, parse_evaluator, parse_evaluators

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_TOKENS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
BLIP_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "two", "dogs", "a", "red", "car", "above"]
LENGTH = 12  # tokens both text models take
CLIP_SIDE, BLIP_SIDE = 32, 48
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# Equal, short, empty, unknown to one of the tokenizers, and far too long.
PROMPTS = ["two dogs", "a red car", "two dogs", "", "a car above " * 8]
NAMES = ["clip-b32", "pickscore", "blip-itc", "blip-itm"]


def random_images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    sizes = [(40, 50), (64, 33), (32, 32), (48, 48), (31, 90)]
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


IMAGES = random_images()


def small(**more: Any) -> dict[str, Any]:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**tower, "initializer_range": 0.5, **more}


def scramble(model: Any) -> None:
    """Move every parameter, so that pairs differ in score and no bias stays zero, no norm stays one."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=draw)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    ids = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = small(vocab_size=len(CLIP_TOKENS), max_position_embeddings=LENGTH, **ids)
    vision = small(image_size=CLIP_SIDE, patch_size=8)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    scramble(model)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab={token: i for i, token in enumerate(CLIP_TOKENS)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)  # says 224 px; the model's own size must win
    return folder


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    text = small(vocab_size=len(BLIP_TOKENS), max_position_embeddings=LENGTH, encoder_hidden_size=16)
    vision = small(image_size=BLIP_SIDE, patch_size=16)
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8))
    scramble(model)
    model.save_pretrained(folder)
    BertTokenizer(vocab={token: i for i, token in enumerate(BLIP_TOKENS)}).save_pretrained(folder)
    BlipImageProcessorPil().save_pretrained(folder)  # says 384 px
    return folder


@pytest.fixture
def load(clip_folder: Path, blip_folder: Path) -> Callable[..., Any]:
    def load(name: str, **options: Any) -> Any:
        return load_evaluator(name, blip_folder if name.startswith("blip") else clip_folder, **options)

    return load


def clip_ids(prompt: str) -> Tensor:
    words = prompt.split()
    tokens = [CLIP_TOKENS.index(letter) for word in words for letter in [*word[:-1], word[-1] + "</w>"]]
    return torch.tensor([[52, *tokens[: LENGTH - 2], 53]])


def blip_ids(prompt: str) -> Tensor:
    return torch.tensor([[2, *(BLIP_TOKENS.index(word) for word in prompt.split()[: LENGTH - 2]), 3]])


def normalised(image: Image.Image) -> Tensor:
    return ((torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - MEAN) / STD)[None]


def clip_pixels(image: Image.Image) -> Tensor:
    width, height = (int(CLIP_SIDE * side / min(image.size)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - CLIP_SIDE) // 2, (height - CLIP_SIDE) // 2
    return normalised(resized.crop((left, top, left + CLIP_SIDE, top + CLIP_SIDE)))


def blip_pixels(image: Image.Image) -> Tensor:
    return normalised(image.resize((BLIP_SIDE, BLIP_SIDE), Image.Resampling.BICUBIC))


@torch.no_grad()
def expected_score(name: str, folder: Path, image: Image.Image, prompt: str) -> float:
    if name.startswith("blip"):
        model: Any = BlipForImageTextRetrieval.from_pretrained(folder)
        inputs = {"input_ids": blip_ids(prompt), "pixel_values": blip_pixels(image)}
        if name == "blip-itc":
            return model(**inputs, use_itm_head=False).itm_score.item()
        no, yes = model(**inputs).itm_score[0].exp().tolist()
        return yes / (no + yes)
    model = CLIPModel.from_pretrained(folder)
    out = model(input_ids=clip_ids(prompt), pixel_values=clip_pixels(image))
    if name == "pickscore":
        return out.logits_per_image.item()
    return 100 * float(out.image_embeds[0] @ out.text_embeds[0])


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_formula(name: str, load: Callable[..., Any], clip_folder: Path, blip_folder: Path) -> None:
    evaluator: Evaluator = load(name)
    folder = blip_folder if name.startswith("blip") else clip_folder
    want = torch.tensor([expected_score(name, folder, *pair) for pair in zip(IMAGES, PROMPTS, strict=True)])
    assert want.std() > 0.01 * want.abs().max()  # else a wrong pairing would not show
    got = evaluator(IMAGES, PROMPTS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert evaluator.name == name


def test_scale_of_pickscore_is_learned_and_that_of_clip_is_not(clip_folder: Path, tmp_path: Path) -> None:
    folder = changed(clip_folder, tmp_path, lambda keys: keys["logit_scale"].fill_(3.0))
    pick, clip = (load_evaluator(name, folder)(IMAGES, PROMPTS) for name in ("pickscore", "clip-b16"))
    torch.testing.assert_close(pick / clip, torch.full((5,), np.exp(3.0) / 100, dtype=torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_five_at_once_equal_one_by_one(name: str, load: Callable[..., Any]) -> None:
    together = load(name)(IMAGES, PROMPTS)
    alone = load(name, batch_size=1)(IMAGES, PROMPTS)
    pairs = load(name, batch_size=2)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, pairs.score(pairs.features(IMAGES), PROMPTS), rtol=1e-5, atol=1e-5)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], pairs([IMAGES[i]], [PROMPTS[i]]), rtol=1e-5, atol=1e-5)


def test_shapes_of_features(load: Callable[..., Any]) -> None:
    clip, blip = load("clip-b32").features(IMAGES), load("blip-itm").features(IMAGES)
    assert clip.shape == (5, 8)
    torch.testing.assert_close(clip.norm(dim=1), torch.ones(5))
    assert blip.shape == (5, 1 + (BLIP_SIDE // 16) ** 2, 16)


@pytest.mark.parametrize("name", NAMES)
def test_score_is_differentiable_in_the_features_and_calls_are_not(name: str, load: Callable[..., Any]) -> None:
    evaluator = load(name)
    assert not any(parameter.requires_grad for parameter in evaluator.model.parameters())
    assert not evaluator(IMAGES, PROMPTS).requires_grad
    assert not evaluator.features(IMAGES).requires_grad
    features = evaluator.features(IMAGES).requires_grad_()
    scores = evaluator.score(features, PROMPTS)
    (slope,) = torch.autograd.grad(scores[1], features)
    assert slope[[0, 2, 3, 4]].abs().max() == 0
    assert slope[1].abs().max() > 0
    # Along the gradient the score changes by the gradient's squared length, to first order.
    step = 1e-3 * slope / slope.norm()
    rise = evaluator.score(features + step, PROMPTS)[1] - evaluator.score(features - step, PROMPTS)[1]
    torch.testing.assert_close(rise / 2e-3, slope.norm(), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_not_finite_is_nan_and_its_neighbours_stay(name: str, load: Callable[..., Any]) -> None:
    evaluator = load(name)
    features = evaluator.features(IMAGES)
    want = evaluator.score(features, PROMPTS)
    features[1].fill_(torch.nan)
    features[3].fill_(torch.inf)
    got = evaluator.score(features, PROMPTS)
    assert got.isnan().tolist() == [False, True, False, True, False]
    torch.testing.assert_close(got[[0, 2, 4]], want[[0, 2, 4]])


def test_infinities_inside_the_model_become_nan(clip_folder: Path, blip_folder: Path, tmp_path: Path) -> None:
    folder = changed(clip_folder, tmp_path / "a", lambda keys: keys["logit_scale"].fill_(1000.0))
    assert load_evaluator("pickscore", folder)(IMAGES, PROMPTS).isnan().all()
    bias = "vision_model.post_layernorm.bias"
    folder = changed(blip_folder, tmp_path / "b", lambda keys: keys[bias][0].fill_(torch.inf))
    assert load_evaluator("blip-itm", folder).features(IMAGES).isnan().all()


def test_images_of_any_mode(load: Callable[..., Any]) -> None:
    clip = load("clip-b32")
    gray = IMAGES[0].convert("L")
    torch.testing.assert_close(clip.features([gray]), clip.features([gray.convert("RGB")]))
    torch.testing.assert_close(clip.features([IMAGES[0].convert("RGBA")]), clip.features([IMAGES[0]]))


@pytest.mark.parametrize("name", ["clip-b32", "blip-itc", "blip-itm"])
def test_low_precision_model_gives_float32_close_by(name: str, load: Callable[..., Any]) -> None:
    low = load(name, dtype=torch.bfloat16)
    assert low.model.dtype == torch.bfloat16
    rewards, features = low(IMAGES, PROMPTS), low.features(IMAGES)
    assert rewards.dtype == features.dtype == torch.float32 and rewards.isfinite().all()
    # Of the features: the matching head of so scrambled a model turns a rounding error into another answer.
    want = load(name).features(IMAGES)
    assert float((features - want).norm() / want.norm()) < 0.1


def test_a_half_precision_checkpoint_runs_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    def halve(keys: dict[str, Tensor]) -> None:
        keys.update({key: value.half() for key, value in keys.items()})

    evaluator: Any = load_evaluator("clip-b32", changed(clip_folder, tmp_path, halve))
    assert evaluator.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "prompts", "words"),
    [
        (IMAGES, PROMPTS[:4], "got 4 for 5 images"),
        (IMAGES, "hello", "got the string 'hello'"),
        ([], [], "got none"),
    ],
)
def test_images_and_prompts_that_do_not_pair_up_are_refused(
    images: Sequence[Image.Image], prompts: Sequence[str], words: str, load: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError, match=words):
        load("clip-b32")(images, prompts)


def test_score_and_features_check_their_counts_too(load: Callable[..., Any]) -> None:
    clip = load("clip-b32")
    with pytest.raises(UsageError, match="got 1 for 5"):
        clip.score(torch.zeros(5, 8), ["a"])
    with pytest.raises(UsageError, match="got none"):
        clip.features([])
    with pytest.raises(UsageError, match="batch_size: got 0"):
        load("clip-b32", batch_size=0)


def changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Copy a model folder and change its weights in place."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    keys = load_file(copy / "model.safetensors")
    change(keys)
    save_file(keys, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def refusal(name: str, weights: str | Path | None) -> str:
    with pytest.raises(ProbeSelectError) as caught:
        load_evaluator(name, weights)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"evaluator {name}: ") and f"{name}=FOLDER" in message
    return message


def test_names() -> None:
    with pytest.raises(UsageError, match=r"^unknown evaluator 'clip'; ") as caught:
        load_evaluator("clip")
    for name in ("clip-b16", "clip-b32", "pickscore", "blip-itc", "blip-itm", "scene-clip", "scene-itm"):
        assert name in str(caught.value)
    assert parse_evaluator("clip-b32") == ("clip-b32", None)
    assert parse_evaluator("clip-b32=some/folder=1") == ("clip-b32", "some/folder=1")
    for text in ("clip-b32=", "clip", "clip=folder", "", "=folder", "=http://host", "a/b=http://host", "a b=exec:c"):
        with pytest.raises(UsageError):
            parse_evaluator(text)


def test_names_of_evaluators_elsewhere() -> None:
    assert parse_evaluator("hpsv3=http://host:8000/score?a=b") == ("hpsv3", "http://host:8000/score?a=b")
    assert parse_evaluator("hpsv3=exec:python judge.py --a=b") == ("hpsv3", "exec:python judge.py --a=b")
    assert parse_evaluator("https://host/score?a=b") == ("https://host/score?a=b", None)
    assert parse_evaluator("exec:judge a=b") == ("exec:judge a=b", None)


def test_a_list_of_evaluators_is_split_at_commas_before_a_command() -> None:
    assert parse_evaluators("") == []
    assert parse_evaluators("clip-b32,blip-itm=some/folder,") == [("clip-b32", None), ("blip-itm", "some/folder")]
    assert parse_evaluators("clip-b32,a=http://host/b,c=exec:judge --x 1,2 exec:") == [
        ("clip-b32", None),
        ("a", "http://host/b"),
        ("c", "exec:judge --x 1,2 exec:"),
    ]
    with pytest.raises(UsageError, match="unknown evaluator 'nothing'"):
        parse_evaluators("clip-b32,nothing")


def test_rows_name_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row reaches its loader with the published weights and settings; no model is loaded."""
    seen: dict[str, tuple[Any, ...]] = {}
    for path in {row.loader for row in EVALUATORS.values()}:
        module, attribute = path.split(":")

        class Fake:
            name = ""

            def __init__(self, weights: Any, kind: str = attribute, **options: Any) -> None:
                seen["now"] = (kind, str(weights).rsplit("weights/", 1)[-1], options)

        monkeypatch.setattr(f"{module}.{attribute}", Fake)
    for name, row in EVALUATORS.items():
        assert load_evaluator(name, None if row.weights else "given", device="meta").name == name
        seen[name] = seen.pop("now")
    on = {"device": "meta"}
    laion = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert seen == {
        "clip-b16": ("ClipEvaluator", "openai/clip-vit-base-patch16", on),
        "clip-b32": ("ClipEvaluator", "openai/clip-vit-base-patch32", on),
        "pickscore": ("ClipEvaluator", "yuvalkirstain/PickScore_v1", {"scale": None, "processor": laion, **on}),
        "hpsv2.0": ("ClipEvaluator", "given", {"letterbox": True, **on}),
        "hpsv2.1": ("ClipEvaluator", "given", {"letterbox": True, **on}),
        "imagereward": ("ImageRewardEvaluator", "given", on),
        "aesthetic": ("ClipHeadEvaluator", "given", on),
        "blip-itc": ("BlipEvaluator", "Salesforce/blip-itm-base-coco", {"head": "itc", **on}),
        "blip-itm": ("BlipEvaluator", "Salesforce/blip-itm-base-coco", {"head": "itm", **on}),
        "ict": ("ClipEvaluator", "given", {"scale": 1.0, **on}),
        "hp": ("ClipHeadEvaluator", "given", {"normalise": False, "sigmoid": True, **on}),
        "ict-hp": ("IctHpEvaluator", "given", on),
        "scene-clip": ("ClipEvaluator", "scene-clip", on),
        "scene-itm": ("BlipEvaluator", "scene-itm", {"head": "itm", **on}),
        "scene-check": ("SceneCheck", "scene-check", on),
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hpsv2.1", "published as a pickle, HPS_v2.1_compressed.pt of xswu/HPSv2: convert it once"),
        ("hp", "hp_backbone/pytorch_model.bin and hp_scorer/mlp_pytorch_model.bin of 8y/HP"),
        ("ict-hp", "made of ict and hp: convert each into FOLDER/NAME"),
    ],
)
def test_a_row_that_is_published_as_a_pickle_says_what_to_convert(name: str, says: str) -> None:
    assert says in refusal(name, None)


def test_rewards_far_off_the_typical_are_told() -> None:
    assert off_the_typical("clip-b32", 25.0) is None
    line = off_the_typical("clip-b32", 2.0)
    assert line == "clip-b32: the mean reward is 2, typical is 31.7 with a spread of 2.85: check its weights"
    assert off_the_typical("clip-b32", 31.7 + 6.1 * 2.85) is not None
    assert off_the_typical("clip-b32", 31.7 + 5.9 * 2.85) is None
    for name in ("scene-clip", "aesthetic", "anything"):
        assert off_the_typical(name, 1e6) is None


def test_judging_gives_features_and_rewards_at_once(load: Callable[..., Any]) -> None:
    evaluator = load("clip-b32")
    features, rewards = judge(evaluator, IMAGES, PROMPTS)
    assert features is not None and has_features(evaluator)
    torch.testing.assert_close(features, evaluator.features(IMAGES))
    torch.testing.assert_close(rewards, evaluator(IMAGES, PROMPTS))


def test_judging_without_features() -> None:
    class Plain:
        has_features = False

        def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
            return torch.ones(len(images))

    features, rewards = judge(Plain(), IMAGES, PROMPTS)
    assert features is None and rewards.tolist() == [1.0] * 5


def test_importing_the_table_does_not_import_transformers() -> None:
    code = f"import sys; sys.path[:] = {sys.path}; import probeselect.evaluators.table; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    modules = done.stdout.split()
    assert "probeselect.evaluators.table" in modules, done.stderr
    assert not {"transformers", "diffusers", "torch"} & set(modules)


@pytest.mark.parametrize(("kind", "key"), [("clip", "text_projection.weight"), ("blip", "itm_head.bias")])
def test_checkpoint_must_fit_key_by_key(
    kind: str, key: str, clip_folder: Path, blip_folder: Path, tmp_path: Path
) -> None:
    name, folder = ("clip-b32", clip_folder) if kind == "clip" else ("blip-itm", blip_folder)
    missing = changed(folder, tmp_path / "a", lambda keys: keys.pop(key))
    assert f"1 missing ({key})" in refusal(name, missing)
    surplus = changed(folder, tmp_path / "b", lambda keys: keys.update({"old.weight": torch.zeros(2)}))
    assert "1 surplus (old.weight)" in refusal(name, surplus)
    shape = changed(folder, tmp_path / "c", lambda keys: keys.update({key: torch.zeros(3)}))
    assert f"1 wrong shape ({key})" in refusal(name, shape)


def test_another_model_is_refused_with_the_first_keys(blip_folder: Path) -> None:
    message = refusal("clip-b32", blip_folder)
    assert "missing (logit_scale, text_model." in message
    assert "surplus (itm_head.bias, itm_head.weight, text_encoder." in message


def test_position_ids_of_older_checkpoints_are_not_surplus(clip_folder: Path, tmp_path: Path) -> None:
    key = "text_model.embeddings.position_ids"
    folder = changed(clip_folder, tmp_path, lambda keys: keys.update({key: torch.arange(LENGTH)[None]}))
    load_evaluator("clip-b32", folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x80\x04K\x01."),
        ("model.safetensors", None),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "clip", "vision_config": {"image_size": "x"}}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", None),
        ("preprocessor_config.json", b"["),
        ("preprocessor_config.json", None),
    ],
)
def test_bad_and_missing_files_are_one_line(
    file: str, content: bytes | None, clip_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert str(folder) in refusal("clip-b32", folder)


def test_pickled_weights_are_not_looked_at(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "model.safetensors" in refusal("clip-b32", folder)


def test_tokenizer_of_another_model_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    larger = [*CLIP_TOKENS, "aa"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(larger)}, merges=[]).save_pretrained(folder)
    assert "its tokenizer has 55 tokens, the model takes 54" in refusal("clip-b32", folder)


def test_weights_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "openai/clip-vit-base-patch32 cannot be read" in refusal("clip-b32", None)
    assert "no-such/model cannot be read" in refusal("pickscore", "no-such/model")
    assert "no such folder" in refusal("scene-itm", tmp_path / "nothing")
