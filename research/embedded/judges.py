"""Stages `scene-clip` (two towers, CLIP's format) and `scene-itm` (image-text matching, BLIP's format).

Trained on renders, never on generated pictures. Every picture meets its caption and captions that are wrong in one
way. The image patches also learn what they show, which teaches a vision tower in minutes what contrast alone does not.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
)

from probeselect.embedded.captions import BACKGROUNDS, COLOURS, MAX_OBJECTS, NOUNS, Spec, caption, parse
from research.embedded.detector import degrade
from research.embedded.negatives import ERRORS, wrong_spec
from research.embedded.optim import MuonAdamW, split_parameters
from research.embedded.render import IMAGE_SIZE
from research.embedded.state import (
    Log,
    Sample,
    TrainingState,
    draw_sample,
    quick_arithmetic,
    rate_at,
    steps_of,
)
from research.embedded.text import MAX_TOKENS, WIDTH, new_tokenizer, text_config, tokenize

# Learn by AdamW.
_READ_OUTS = ("shown", "colour", "background", "counts", "places", "said", "offset", "model.itm_head")
PATCH = 8
PATCHES = IMAGE_SIZE // PATCH
NEGATIVES = 3  # wrong captions of every picture
_WEIGHT_OF_ERROR = {"relation": 8, "count": 4}  # how often a kind of error is drawn before the others
MEAN, STD = [0.5] * 3, [0.5] * 3  # of the image processors: pictures in [-1, 1]
_VISION: dict[str, Any] = {"hidden_size": 160, "intermediate_size": 640}
_VISION |= {"num_hidden_layers": 4, "num_attention_heads": 5}
_VISION |= {"image_size": IMAGE_SIZE, "patch_size": PATCH, "hidden_act": "gelu"}


class Seeing(nn.Module):
    """A model with read-outs, which bring in minutes what contrast alone does not.

    Of the picture: what each patch shows; how many there are of each noun, where, and before which background.
    Of the text: which noun a caption wants on which side. Of a text that has seen the picture: how its nouns lie.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        width = _VISION["hidden_size"]
        self.shown = nn.Linear(width, len(NOUNS) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.background = nn.Linear(width, len(BACKGROUNDS))
        self.counts = nn.Linear(width, len(NOUNS) * (MAX_OBJECTS + 1))
        self.places = nn.Linear(width, len(NOUNS) * 2)
        self.said = nn.Linear(WIDTH, len(NOUNS) * 2)
        self.offset = nn.Linear(WIDTH, 2)

    def seeing_loss(self, patches: Tensor, whole: Tensor, samples: list[Sample]) -> Tensor:
        """patches [N, patches, D], whole [N, D]."""
        nouns, colours = patch_truth(samples)  # [N, patches]
        counts, places = whole_truth(samples)  # [N, nouns], [N, nouns, 2]
        background = torch.tensor([BACKGROUNDS.index(s.scene.background) for s in samples])
        there = counts > 0
        told = self.counts(whole).unflatten(1, (len(NOUNS), -1))  # [N, nouns, 4]
        return (
            F.cross_entropy(self.shown(patches).flatten(0, 1), nouns.flatten())
            + F.cross_entropy(self.colour(patches).flatten(0, 1), colours.flatten())
            + 0.5 * F.cross_entropy(self.background(whole), background)
            + 2 * F.cross_entropy(told.flatten(0, 1), counts.flatten())
            + 2 * (self.places(whole).unflatten(1, (-1, 2)) - places)[there].abs().mean()
        )

    def saying_loss(self, text: Tensor, specs: list[Spec]) -> Tensor:
        """Where captions want their nouns, read from text [T, WIDTH]."""
        return F.mse_loss(self.said(text).unflatten(1, (-1, 2)), wanted_sides(specs)) * len(NOUNS)

    def lying_loss(self, text: Tensor, specs: list[Spec], samples: list[Sample]) -> Tensor:
        """How the first noun lies to the second, read from text [T, WIDTH] that has seen the samples in turn."""
        counts, places = whole_truth(samples)
        rows, offsets = [], []
        for i, spec in enumerate(specs):
            picture, nouns = i % len(samples), [NOUNS.index(subject.noun) for subject in spec.subjects]
            if len(nouns) == 2 and counts[picture, nouns].all():
                rows.append(i)
                offsets.append(places[picture, nouns[1]] - places[picture, nouns[0]])
        return F.smooth_l1_loss(self.offset(text[rows]), torch.stack(offsets)) if rows else text.sum() * 0


def wanted_sides(specs: list[Spec]) -> Tensor:
    """[T, nouns, 2]: -1 for a noun that is to be left of (or above) the other, 1 for the other, 0 where unsaid."""
    sides = torch.zeros(len(specs), len(NOUNS), 2)
    for i, spec in enumerate(specs):
        if spec.relation:
            first, second = (NOUNS.index(subject.noun) for subject in spec.subjects)
            axis = 0 if spec.relation in ("left of", "right of") else 1
            sides[i, first, axis] = -1 if spec.relation in ("left of", "above") else 1
            sides[i, second, axis] = -sides[i, first, axis]
    return sides


def whole_truth(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """How many of each noun [N, nouns], and their mean centre [N, nouns, 2] in [-1, 1] (0 where there is none)."""
    counts = torch.zeros(len(samples), len(NOUNS), dtype=torch.long)
    places = torch.zeros(len(samples), len(NOUNS), 2)
    for i, sample in enumerate(samples):
        for placed in sample.scene.objects:
            noun = NOUNS.index(placed.noun)
            counts[i, noun] += 1
            places[i, noun] += torch.tensor([placed.x, placed.y]) / (IMAGE_SIZE / 2) - 1
    return counts, places / counts.clamp(min=1)[..., None]


def patch_truth(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Classes of noun and colour [N, patches] of the object that covers a patch's centre; 0: none."""
    nouns = torch.zeros(len(samples), PATCHES, PATCHES, dtype=torch.long)
    colours = torch.zeros_like(nouns)
    axis = (torch.arange(PATCHES) + 0.5) * PATCH
    for i, sample in enumerate(samples):
        for placed in sample.scene.objects:
            reach = 0.45 * placed.side
            covered = ((axis[:, None] - placed.y).abs() < reach) & ((axis[None, :] - placed.x).abs() < reach)
            nouns[i][covered] = NOUNS.index(placed.noun) + 1
            colours[i][covered] = COLOURS.index(placed.colour) + 1 if placed.colour else 0
    return nouns.flatten(1), colours.flatten(1)


def new_clip() -> CLIPModel:
    config = CLIPConfig(text_config=text_config().to_dict(), vision_config=_VISION, projection_dim=WIDTH)
    return CLIPModel(config)


def new_itm() -> BlipForImageTextRetrieval:
    text = {"vocab_size": text_config().vocab_size, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": MAX_TOKENS}
    text |= {"encoder_hidden_size": _VISION["hidden_size"], "hidden_dropout_prob": 0.0, "pad_token_id": 0}
    text |= {"attention_probs_dropout_prob": 0.0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=_VISION, projection_dim=WIDTH, image_text_hidden_size=WIDTH)
    return BlipForImageTextRetrieval(config)


def clip_loss(module: Seeing, images: Tensor, ids: Tensor, specs: list[Spec], samples: list[Sample]) -> Tensor:
    """Contrast of every picture with all captions, right and wrong; ids [(1 + NEGATIVES) * N, L], right ones first."""
    model = module.model
    seen = model.vision_model(images)
    patches = seen.last_hidden_state[:, 1:]
    image = F.normalize(model.visual_projection(seen.pooler_output), dim=-1)  # [N, D]
    read = model.text_model(ids, attention_mask=(ids > 0).long()).pooler_output  # [(1 + NEGATIVES) * N, WIDTH]
    text = F.normalize(model.text_projection(read), dim=-1)
    logits = image @ text.T * model.logit_scale.exp().clamp(max=50)  # [N, (1 + NEGATIVES) * N]
    n = len(images)
    own = logits.view(n, 1 + NEGATIVES, n).diagonal(dim1=0, dim2=2).T  # [N, 1 + NEGATIVES]
    right = torch.zeros(n, dtype=torch.long)
    loss = F.cross_entropy(logits, torch.arange(n)) + F.cross_entropy(logits[:, :n].T, torch.arange(n))
    loss = loss + 2 * F.cross_entropy(own, right) + module.saying_loss(read, specs)
    return loss + module.seeing_loss(patches, seen.pooler_output, samples)


def itm_loss(module: Seeing, images: Tensor, ids: Tensor, specs: list[Spec], samples: list[Sample]) -> Tensor:
    """Does the caption match: the right ones, and NEGATIVES wrong ones of the same picture."""
    model = module.model
    seen = model.vision_model(images)
    tokens = seen.last_hidden_state  # [N, 1 + patches, D]
    spread = tokens.repeat(1 + NEGATIVES, 1, 1)
    layers = model.text_encoder(
        ids, attention_mask=(ids > 0).long(), encoder_hidden_states=spread, output_hidden_states=True
    ).hidden_states
    logits = model.itm_head(layers[-1][:, 0])  # [(1 + NEGATIVES) * N, 2]
    before = layers[-2][:, 0]  # one layer is left to compare what is said with what is seen
    n = len(images)
    label = torch.zeros(len(logits), dtype=torch.long)
    label[:n] = 1
    margin = (logits[:, 1] - logits[:, 0]).view(1 + NEGATIVES, n)  # the right one must beat its wrong ones
    loss = F.cross_entropy(logits, label) + F.cross_entropy(margin.T, torch.zeros(n, dtype=torch.long))
    loss = loss + module.saying_loss(before, specs) + 2 * module.lying_loss(before, specs, samples)
    return loss + module.seeing_loss(tokens[:, 1:], seen.pooler_output, samples)


_JUDGES: dict[str, tuple[Callable[[], Any], Callable[..., Tensor], Any]] = {
    "scene-clip": (new_clip, clip_loss, CLIPImageProcessorPil),
    "scene-itm": (new_itm, itm_loss, BlipImageProcessorPil),
}


def train(
    name: str, work: Path, steps: int, text_encoder: CLIPTextModel, batch: int = 64, start: Path | None = None
) -> Any:
    """Train `scene-clip` (whose text tower starts as `text_encoder`) or `scene-itm`; `start`: weights to go on from."""
    build, loss_of, _ = _JUDGES[name]
    torch.manual_seed(5)
    module, tokenizer = Seeing(build()), new_tokenizer()
    if start is not None:
        module.model = type(module.model).from_pretrained(start, dtype=torch.float32)
    elif name == "scene-clip":
        module.model.text_model.load_state_dict(text_encoder.state_dict())
    optimizer = MuonAdamW(*split_parameters(module, _READ_OUTS))
    state = TrainingState(work / f"{name}.safetensors", module, optimizer)
    log = Log(work / f"{name}.jsonl", steps)
    module.train()
    for step, rng in steps_of(state, steps, name):
        samples = [draw_sample(rng) for _ in range(batch)]
        texts = [s.caption for s in samples] + wrong_captions(samples, rng)
        images, ids = degrade(torch.stack([s.image for s in samples]), rng), tokenize(tokenizer, texts)
        with quick_arithmetic():
            loss = loss_of(module, images, ids, [parse(text) for text in texts], samples)
        state.update(loss, rate_at(step, steps, peak=1e-3))
        log.add(state.step, batch, loss=loss.item())
    state.use_ema()
    return module.model


def wrong_captions(samples: list[Sample], rng: random.Random) -> list[str]:
    """NEGATIVES captions for every picture, each wrong in one way: first one for all pictures, then the next."""
    drawn = [_wrong_captions_of(parse(sample.caption), rng) for sample in samples]
    return [texts[i] for i in range(NEGATIVES) for texts in drawn]


def _wrong_captions_of(spec: Spec, rng: random.Random) -> list[str]:
    """Wrong in different ways where the caption allows, in those that are hard to learn more often."""
    hardest_first = sorted(ERRORS, key=lambda error: rng.random() ** (1 / _WEIGHT_OF_ERROR.get(error, 1)), reverse=True)
    wrong = [wrong_spec(spec, rng, error) for error in hardest_first]
    texts = [caption(one, rng) for one in wrong if one is not None]
    return [texts[i % len(texts)] for i in range(NEGATIVES)]


def save(name: str, model: Any, folder: Path) -> None:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = _JUDGES[name][2](size=size, crop_size=size, image_mean=MEAN, image_std=STD)
    model.half().save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    processor.save_pretrained(folder)
