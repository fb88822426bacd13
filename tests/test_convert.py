"""Published checkpoints, tiny and with the published key names, against plain torch computations written here.

What the converted folder rewards is compared with the published architecture: open_clip's with nn.MultiheadAttention,
ImageReward's on its state dict, heads by matrix products.
"""

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_evaluators as tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from test_evaluators import BLIP_TOKENS, CLIP_SIDE, CLIP_TOKENS, IMAGES, PROMPTS, clip_ids, clip_pixels, normalised
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators import convert as converting
from probeselect.evaluators.convert import convert
from probeselect.evaluators.layouts import clip_head, imagereward, linear_widths, open_clip
from probeselect.evaluators.table import load_evaluator
from probeselect.evaluators.unpickle import tensors_of

State = dict[str, Tensor]
HEAD = [8, 12, 6, 5, 4, 1]  # widths of the published heads, scaled down
HEAD_LAYERS = (0, 2, 4, 6, 7)  # where the published heads have linear layers, dropouts counted
TEXT, VISION, OUT = 16, 20, 8  # widths; heads are 8 and 10 wide
LENGTH = 12  # tokens that the text model takes


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the second process where it is not on trial."""

    def unpickled(path: Path, temporary: Path) -> State:
        return tensors_of(torch.load(path, weights_only=True))

    monkeypatch.setattr(converting, "unpickled", unpickled)


def quiet(line: str) -> None:
    pass


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scrambled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {key: 0.3 * torch.randn(shape, generator=draw) for key, shape in shapes.items()}


# --- open_clip ---


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 3 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(3 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, VISION, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(VISION))
        self.positional_embedding = nn.Parameter(torch.zeros(17, VISION))
        self.ln_pre, self.ln_post = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
        self.transformer = Blocks(VISION, 2)
        self.proj = nn.Parameter(torch.zeros(VISION, OUT))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [N, 16, D]
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """What open_clip's CLIP computes, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.transformer = Blocks(TEXT, 2)
        self.token_embedding = nn.Embedding(len(CLIP_TOKENS), TEXT)
        self.positional_embedding = nn.Parameter(torch.zeros(LENGTH, TEXT))
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.zeros(TEXT, OUT))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        tiny.scramble(self)

    def encode_text(self, ids: Tensor) -> Tensor:
        count = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:count]
        future = torch.full((count, count), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, future))
        return x[torch.arange(len(x)), ids.argmax(1)] @ self.text_projection

    @torch.no_grad()
    def cosine(self, pixels: Tensor, ids: Tensor) -> float:
        return F.cosine_similarity(self.visual(pixels), self.encode_text(ids)).item()


def letterbox_pixels(image: Image.Image) -> Tensor:
    scale = CLIP_SIDE / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (CLIP_SIDE - width) // 2, (CLIP_SIDE - height) // 2
    square = Image.new("RGB", (CLIP_SIDE, CLIP_SIDE), 0)
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    return normalised(square)


@pytest.fixture(scope="module")
def clip_processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, image processor, config.json and weights of a tiny CLIPModel, as on the hub."""
    folder = tmp_path_factory.mktemp("processor")
    clip_model("quick_gelu").save_pretrained(folder)
    CLIPTokenizer(vocab={token: i for i, token in enumerate(CLIP_TOKENS)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def clip_model(hidden_act: str) -> Any:
    ids = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53, "hidden_act": hidden_act}
    text = tiny.small(vocab_size=len(CLIP_TOKENS), max_position_embeddings=LENGTH, **ids)
    vision = tiny.small(image_size=CLIP_SIDE, patch_size=8, hidden_act=hidden_act)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=OUT)).eval()
    tiny.scramble(model)
    return model


def test_open_clip_is_clip_of_transformers() -> None:
    theirs = OpenClip()
    config, tensors = open_clip(theirs.state_dict(), head_widths=(8, 10), hidden_act="gelu")
    ours = CLIPModel(CLIPConfig.from_dict(config)).eval()
    ours.load_state_dict(tensors)
    pixels, ids = torch.cat([clip_pixels(image) for image in IMAGES]), clip_ids("two dogs")
    with torch.no_grad():
        image, text = theirs.visual(pixels), theirs.encode_text(ids)
        torch.testing.assert_close(ours.get_image_features(pixels).pooler_output, image, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.get_text_features(ids).pooler_output, text, rtol=0, atol=1e-5)
    assert image.std() > 0.1 and text.std() > 0.1
    assert (config["text_config"]["num_attention_heads"], config["vision_config"]["num_attention_heads"]) == (2, 2)
    assert config["text_config"]["eos_token_id"] == 53


def test_hps_checkpoint_becomes_a_folder_that_rewards_as_published(
    clip_processor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = OpenClip()
    file, out = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "folder"
    torch.save({"epoch": 3, "name": "x", "state_dict": theirs.state_dict()}, file)
    made = convert("hpsv2.1", file, out, processor=clip_processor, sha256=sha256(file), head_widths=(8, 10))
    assert (made.folder, made.sha256) == (out, {"HPS_v2.1_compressed.pt": sha256(file)})
    said = capsys.readouterr().out
    assert sha256(file) in said and "in a process of its own" in said and f"hpsv2.1={out}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["HPS_v2.1_compressed.pt", "folder"]
    evaluator = load_evaluator("hpsv2.1", out)
    want = [100 * theirs.cosine(letterbox_pixels(i), clip_ids(p)) for i, p in zip(IMAGES, PROMPTS, strict=True)]
    torch.testing.assert_close(evaluator(IMAGES, PROMPTS), torch.tensor(want), rtol=1e-4, atol=1e-4)


def test_hps_is_refused_by_its_digest_before_it_is_read(clip_processor: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(b"anything")
    with pytest.raises(ProbeSelectError, match=f"has sha256 {sha256(file)}, must be c57a38fb"):
        convert("hpsv2.1", file, tmp_path / "out", processor=clip_processor, say=quiet)
    with pytest.raises(ProbeSelectError, match="must be 00ff: another file"):
        convert("ict", file, tmp_path / "out", processor=clip_processor, sha256="00FF", say=quiet)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"visual.proj": None}, "missing key 'visual_projection.weight'"),
        ({"visual.attnpool.x": torch.zeros(1)}, "surplus key 'visual.attnpool.x'"),
        ({"ln_final.bias": torch.zeros(3)}, r"wrong shape \(text_model.final_layer_norm.bias\)"),
        ({"transformer.resblocks.1.ln_1.bias": None}, r"1 missing \(text_model.encoder.layers.1.layer_norm1.bias\)"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_hps_that_does_not_fit_is_refused_by_the_key(
    change: dict[str, Any], says: str, clip_processor: Path, tmp_path: Path
) -> None:
    state = {key: value for key, value in {**OpenClip().state_dict(), **change}.items() if value is not None}
    file = tmp_path / "file.pt"
    torch.save({"state_dict": state}, file)
    options: dict[str, Any] = {"processor": clip_processor, "sha256": sha256(file), "head_widths": (8, 10)}
    with pytest.raises(ProbeSelectError, match=says) as caught:
        convert("hpsv2.0", file, tmp_path / "out", say=quiet, **options)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ProbeSelectError, match="head_widths: 64 does not divide the text model's width 16"):
        open_clip(OpenClip().state_dict(), head_widths=(64, 80), hidden_act="gelu")


# --- heads: aesthetic, HP, ICT ---


def head_state(seed: int = 1) -> State:
    pairs = zip(HEAD_LAYERS, HEAD, HEAD[1:], strict=False)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, width, out in pairs:
        shapes |= {f"layers.{layer}.weight": (out, width), f"layers.{layer}.bias": (out,)}
    return scrambled(shapes, seed)


def through_head(state: State, x: Tensor) -> Tensor:
    for layer in HEAD_LAYERS:
        x = x @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
    return x[:, 0]


@torch.no_grad()
def embeddings(model: Any) -> Tensor:
    return torch.cat([model.get_image_features(clip_pixels(image)).pooler_output for image in IMAGES])


@pytest.fixture
def aesthetic(clip_processor: Path, tmp_path: Path, in_this_process: None) -> Path:
    file = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(head_state(), file)
    options: dict[str, Any] = {"processor": clip_processor, "sha256": sha256(file), "head_widths": (8, 8)}
    return convert("aesthetic", file, tmp_path / "aesthetic", say=quiet, **options).folder


def test_aesthetic_is_the_head_on_normalised_embeddings(aesthetic: Path) -> None:
    evaluator: Any = load_evaluator("aesthetic", aesthetic)
    got = evaluator(IMAGES, PROMPTS)
    want = through_head(head_state(), F.normalize(embeddings(clip_model("quick_gelu"))))
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(evaluator(IMAGES, PROMPTS[::-1]), got)  # prompts are ignored
    features = evaluator.features(IMAGES).requires_grad_()
    (slope,) = torch.autograd.grad(evaluator.score(features, PROMPTS)[1], features)
    assert slope[1].abs().max() > 0 and slope[[0, 2, 3, 4]].abs().max() == 0
    features.detach()[2] = torch.nan
    assert evaluator.score(features, PROMPTS).isnan().tolist() == [False, False, True, False, False]
    low = load_evaluator("aesthetic", aesthetic, dtype=torch.bfloat16, batch_size=2)(IMAGES, PROMPTS)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, want, rtol=0.1, atol=0.1)


def test_aesthetic_with_a_changed_key_is_refused(aesthetic: Path, tmp_path: Path) -> None:
    for change, says in [
        (lambda keys: keys.pop("head.1.bias"), "1 missing (head.1.bias)"),
        (lambda keys: keys.update({"head.9.bias": torch.zeros(1)}), "1 surplus (head.9.bias)"),
        (lambda keys: keys.update({"head.4.bias": torch.zeros(3)}), "1 wrong shape (head.4.bias)"),
    ]:
        folder = tiny.changed(aesthetic, tmp_path / says[2:6], change)
        assert says in tiny.refusal("aesthetic", folder)


@pytest.fixture
def ict_hp(clip_processor: Path, tmp_path: Path) -> tuple[Path, Any, Any]:
    """The folder of both, and the models they were made of."""
    ict, hp = clip_model("quick_gelu"), clip_model("gelu")
    older = {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
    files = {
        "ICT/pytorch_model.bin": {**ict.state_dict(), **older},
        "HP/hp_backbone/pytorch_model.bin": hp.state_dict(),
        "HP/hp_scorer/mlp_pytorch_model.bin": head_state(),
    }
    for name, state in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, tmp_path / name)
    convert("ict", tmp_path / "ICT/pytorch_model.bin", tmp_path / "both/ict", processor=clip_processor, say=quiet)
    options: dict[str, Any] = {"processor": clip_processor, "head_widths": (8, 8)}
    convert("hp", tmp_path / "HP", tmp_path / "both/hp", say=quiet, **options)
    return tmp_path / "both", ict, hp


def test_ict_and_hp_and_their_product(ict_hp: tuple[Path, Any, Any]) -> None:
    folder, ict, hp = ict_hp
    with torch.no_grad():
        text = torch.cat([ict.get_text_features(clip_ids(prompt)).pooler_output for prompt in PROMPTS])
    want_ict = F.cosine_similarity(embeddings(ict), text)
    want_hp = torch.sigmoid(through_head(head_state(), embeddings(hp)))
    assert want_hp.std() > 0.01 and want_ict.std() > 0.01
    both: Any = load_evaluator("ict-hp", folder, batch_size=2)
    for evaluator, want in [
        (load_evaluator("ict", folder / "ict"), want_ict),
        (load_evaluator("hp", folder / "hp"), want_hp),
        (both, want_ict * want_hp),
    ]:
        torch.testing.assert_close(evaluator(IMAGES, PROMPTS), want, rtol=1e-4, atol=1e-5)
        features = evaluator.features(IMAGES)
        torch.testing.assert_close(evaluator.score(features, PROMPTS), want, rtol=1e-4, atol=1e-5)
    features = both.features(IMAGES)
    assert features.shape == (5, 2 * OUT) and both.name == "ict-hp"
    (slope,) = torch.autograd.grad(both.score(features.requires_grad_(), PROMPTS).sum(), features)
    assert slope[:, :OUT].abs().max() > 0 and slope[:, OUT:].abs().max() > 0
    with pytest.raises(UsageError, match="got 1 for 5"):
        both.score(features, ["a"])
    shutil.rmtree(folder / "hp")
    assert "hp: no such folder" in tiny.refusal("ict-hp", folder)


@pytest.mark.parametrize(
    ("backbone", "head", "says"),
    [
        ({"logit_scales": torch.zeros(())}, {}, "surplus key 'logit_scales'"),
        ({"visual_projection.weight": None}, {}, "missing key 'visual_projection.weight'"),
        ({"vision_model.embeddings.position_embedding.weight": None}, {}, "missing key 'vision_model.embeddings.pos"),
        ({}, {"layer.0.weight": torch.zeros(1)}, "surplus key 'layer.0.weight'"),
        ({}, {"layers.4.weight": torch.zeros(5, 7)}, "wrong shape: the head's layers are"),
        ({}, {"layers.7.weight": torch.zeros(2, 4)}, "wrong shape: the head's layers are"),
        ({}, {"layers.4.weight": None}, "missing key 'head.2.weight'"),
    ],
)
def test_head_and_backbone_are_checked_by_key(backbone: dict[str, Any], head: dict[str, Any], says: str) -> None:
    states = [{**clip_model("gelu").state_dict(), **backbone}, {**head_state(), **head}]
    states = [{key: value for key, value in state.items() if value is not None} for state in states]
    with pytest.raises(ProbeSelectError, match=says):
        clip_head(*states, head_widths=(8, 8), hidden_act="gelu")


def test_no_head_at_all() -> None:
    with pytest.raises(ProbeSelectError, match=r"missing key 'layers.0.weight'"):
        linear_widths({})


# --- ImageReward ---


def imagereward_state() -> State:
    """ImageReward.pt's names: a ViT of width 20 and a BERT of width 8, two layers each."""
    width, text = VISION, HEAD[0]
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, 17, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, 8, 8),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        **norm("blip.visual_encoder.norm", width),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(BLIP_TOKENS) + 2, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, text),
        **norm("blip.text_encoder.embeddings.LayerNorm", text),
        **linear("blip.vision_proj", width, 4),
        **linear("blip.text_proj", text, 4),
    }
    for i in range(2):
        block = f"blip.visual_encoder.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", width, 3 * width) | linear(f"{block}.mlp.fc2", 3 * width, width)
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for kind, seen in [("attention", text), ("crossattention", width)]:
            shapes |= linear(f"{layer}.{kind}.self.query", text, text)
            shapes |= linear(f"{layer}.{kind}.self.key", seen, text) | linear(f"{layer}.{kind}.self.value", seen, text)
            shapes |= linear(f"{layer}.{kind}.output.dense", text, text)
            shapes |= norm(f"{layer}.{kind}.output.LayerNorm", text)
        shapes |= linear(f"{layer}.intermediate.dense", text, 24) | linear(f"{layer}.output.dense", 24, text)
        shapes |= norm(f"{layer}.output.LayerNorm", text)
    state = scrambled(shapes)
    for key in state:
        if key.endswith(".weight") and "norm" in key.lower():
            state[key] += 1  # else little is left after a few layers
    state |= {f"mlp.{key}": value for key, value in head_state().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return state


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Plain attention of [L, D], [M, D], [M, D]; `mask` [M] is what may be seen."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))  # [heads, ., D / heads]
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def imagereward_score(state: State, image: Image.Image, prompt: str) -> float:
    """The published computation for one pair, its text padded to 35 tokens."""

    def lin(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    vit = "blip.visual_encoder"
    patches = F.conv2d(
        clip_pixels(image), state[f"{vit}.patch_embed.proj.weight"], state[f"{vit}.patch_embed.proj.bias"], 8
    )
    x = torch.cat([state[f"{vit}.cls_token"][0], patches[0].flatten(1).T]) + state[f"{vit}.pos_embed"][0]
    for i in range(2):
        block = f"{vit}.blocks.{i}"
        q, k, v = lin(f"{block}.attn.qkv", layer_norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + lin(f"{block}.attn.proj", attend(q, k, v, 2))
        x = x + lin(f"{block}.mlp.fc2", F.gelu(lin(f"{block}.mlp.fc1", layer_norm(f"{block}.norm2", x, 1e-6))))
    seen = layer_norm(f"{vit}.norm", x, 1e-6)

    words = [2, *(BLIP_TOKENS.index(word) for word in prompt.split()[:33]), 3]  # [CLS] ... [SEP], cut to 35
    mask = torch.arange(35) < len(words)
    ids = torch.tensor(words + [0] * (35 - len(words)))
    bert = "blip.text_encoder"
    x = state[f"{bert}.embeddings.word_embeddings.weight"][ids]
    x = layer_norm(
        f"{bert}.embeddings.LayerNorm", x + state[f"{bert}.embeddings.position_embeddings.weight"][:35], 1e-12
    )
    for i in range(2):
        layer = f"{bert}.encoder.layer.{i}"
        for kind, source, which in [("attention", None, mask), ("crossattention", seen, None)]:
            keys = x if source is None else source
            name = f"{layer}.{kind}"
            mixed = attend(
                lin(f"{name}.self.query", x), lin(f"{name}.self.key", keys), lin(f"{name}.self.value", keys), 2, which
            )
            x = layer_norm(f"{name}.output.LayerNorm", lin(f"{name}.output.dense", mixed) + x, 1e-12)
        wide = F.gelu(lin(f"{layer}.intermediate.dense", x))
        x = layer_norm(f"{layer}.output.LayerNorm", lin(f"{layer}.output.dense", wide) + x, 1e-12)
    head = {key.removeprefix("mlp."): value for key, value in state.items() if key.startswith("mlp.")}
    return (through_head(head, x[:1]).item() - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.usefixtures("in_this_process")
def test_imagereward_is_what_is_published(tmp_path: Path) -> None:
    state = imagereward_state()
    file, words = tmp_path / "ImageReward.pt", tmp_path / "words"
    torch.save(state, file)
    BertTokenizer(vocab={token: i for i, token in enumerate(BLIP_TOKENS)}).save_pretrained(words)
    options: dict[str, Any] = {"processor": words, "sha256": sha256(file), "head_widths": (4, 10)}
    folder = convert("imagereward", file, tmp_path / "out", say=quiet, **options).folder
    evaluator: Any = load_evaluator("imagereward", folder, batch_size=2)
    prompts = [*PROMPTS[:4], "a red car above two dogs " * 8]  # the last is longer than 35 tokens
    want = torch.tensor([imagereward_score(state, i, p) for i, p in zip(IMAGES, prompts, strict=True)])
    assert want.std() > 0.01
    torch.testing.assert_close(evaluator(IMAGES, prompts), want, rtol=1e-4, atol=1e-5)
    features = evaluator.features(IMAGES).requires_grad_()
    assert features.shape == (5, 17, VISION)
    scores = evaluator.score(features, prompts)
    torch.testing.assert_close(scores, want, rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(scores[1], features)
    assert slope[1].abs().max() > 0 and slope[[0, 2, 3, 4]].abs().max() == 0
    low = load_evaluator("imagereward", folder, dtype=torch.bfloat16)(IMAGES, prompts)
    assert low.dtype == torch.float32 and low.isfinite().all()
    keys = load_file(folder / "model.safetensors")
    assert not [key for key in keys if "proj." in key and "patch" not in key] and "head.4.weight" in keys
    assert "vision_model.post_layernorm.bias" in keys
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["layer_norm_eps"] == 1e-6 and config["head_widths"] == HEAD
    damaged = tiny.changed(folder, tmp_path / "damaged", lambda keys: keys.pop("vision_model.post_layernorm.bias"))
    assert "1 missing (vision_model.post_layernorm.bias)" in tiny.refusal("imagereward", damaged)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blip.itm_head.weight": torch.zeros(1)}, "surplus key 'blip.itm_head.weight'"),
        ({"blip.visual_encoder.patch_embed.proj.weight": None}, "missing key 'vision_model.embeddings.patch_embed"),
        ({"mlp.layers.0.weight": None}, "missing key 'head.0.weight'"),
    ],
)
def test_imagereward_is_checked_by_key(change: dict[str, Any], says: str) -> None:
    state = {key: value for key, value in {**imagereward_state(), **change}.items() if value is not None}
    with pytest.raises(ProbeSelectError, match=says):
        imagereward(state, head_widths=(4, 10))


# --- files ---


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_wants_to_run_something_is_refused_and_runs_nothing(clip_processor: Path, tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Canary(canary)}, file)
    with pytest.raises(ProbeSelectError, match="not a pickle of plain tensors, and nothing of it was run") as caught:
        convert("ict", file, tmp_path / "out", processor=clip_processor, say=quiet)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert not canary.exists() and not (tmp_path / "out").exists()
    torch.load(file, weights_only=False)  # the canary works
    assert canary.exists()


def test_tensors_of_what_is_no_checkpoint() -> None:
    for content, says in [([1], "holds list"), ({}, "holds dict"), ({"a": 1}, "key 'a' is int"), ({1: 2}, "key 1")]:
        with pytest.raises(TypeError, match=says):
            tensors_of(content)
    shared = torch.zeros(4)
    tensors = tensors_of({"model": {"a": shared, "b": shared[:2]}, "epoch": 3})
    assert tensors["a"].data_ptr() != tensors["b"].data_ptr()


def test_what_convert_does_not_take(clip_processor: Path, tmp_path: Path) -> None:
    for name, says in [("ict-hp", "made of ict and hp"), ("scene-itm", "not published"), ("nothing", "unknown")]:
        with pytest.raises(UsageError, match=says):
            convert(name, tmp_path, tmp_path / "out")
    with pytest.raises(ProbeSelectError, match=r"hp_backbone/pytorch_model.bin: no such file; hp is published as"):
        convert("hp", tmp_path, tmp_path / "out")
    (tmp_path / "file.pt").touch()
    with pytest.raises(UsageError, match="exists already"):
        convert("ict", tmp_path / "file.pt", tmp_path)
    with pytest.raises(UsageError, match="head_widths: ict takes its sizes from the processor's config"):
        convert("ict", tmp_path / "file.pt", tmp_path / "out", head_widths=(8, 8))
    with pytest.raises(ProbeSelectError, match=r"processor no/such: no such folder, and the hub did not give it"):
        convert("ict", tmp_path / "file.pt", tmp_path / "out", processor="no/such", say=quiet)
    for part in ("hp_backbone/pytorch_model.bin", "hp_scorer/mlp_pytorch_model.bin"):
        (tmp_path / part).parent.mkdir()
        (tmp_path / part).touch()
    with pytest.raises(UsageError, match="hp has 2 files, the option is for one"):
        convert("hp", tmp_path, tmp_path / "out", sha256="00")
