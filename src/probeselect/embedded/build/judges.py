"""Stage 5 and 6: `scene-clip` (two towers, CLIP's format) and `scene-itm` (image-text matching, BLIP's format).

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
)

from probeselect.embedded.build.detector import degrade
from probeselect.embedded.build.state import Log, Sample, TrainingState, draw_sample, rate_at, steps_of
from probeselect.embedded.build.text import MAX_TOKENS, WIDTH, new_tokenizer, text_config, tokenize
from probeselect.embedded.captions import BACKGROUNDS, COLOURS, NOUNS, caption, parse
from probeselect.embedded.negatives import wrong_spec
from probeselect.embedded.render import IMAGE_SIZE

PATCH = 8
PATCHES = IMAGE_SIZE // PATCH
NEGATIVES = 3  # wrong captions of every picture
MEAN, STD = [0.5] * 3, [0.5] * 3  # of the image processors: pictures in [-1, 1]
_VISION: dict[str, Any] = {"hidden_size": 160, "intermediate_size": 640}
_VISION |= {"num_hidden_layers": 4, "num_attention_heads": 5}
_VISION |= {"image_size": IMAGE_SIZE, "patch_size": PATCH, "hidden_act": "gelu"}


class Seeing(nn.Module):
    """A model with read-outs on its image tokens: what each patch shows, and the background."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.shown = nn.Linear(_VISION["hidden_size"], len(NOUNS) + 1)
        self.colour = nn.Linear(_VISION["hidden_size"], len(COLOURS) + 1)
        self.background = nn.Linear(_VISION["hidden_size"], len(BACKGROUNDS))

    def seeing_loss(self, tokens: Tensor, samples: list[Sample]) -> Tensor:
        """tokens [N, 1 + patches, D], the class token first."""
        nouns, colours = patch_truth(samples)  # [N, patches]
        background = torch.tensor([BACKGROUNDS.index(s.scene.background) for s in samples])
        patches = tokens[:, 1:]
        return (
            F.cross_entropy(self.shown(patches).flatten(0, 1), nouns.flatten())
            + F.cross_entropy(self.colour(patches).flatten(0, 1), colours.flatten())
            + 0.5 * F.cross_entropy(self.background(tokens[:, 0]), background)
        )


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


def clip_loss(module: Seeing, images: Tensor, ids: Tensor, samples: list[Sample]) -> Tensor:
    """Contrast of every picture with all captions, right and wrong; ids [(1 + NEGATIVES) * N, L], right ones first."""
    model = module.model
    seen = model.vision_model(images)
    image = F.normalize(model.visual_projection(seen.pooler_output), dim=-1)  # [N, D]
    text = F.normalize(model.get_text_features(ids, attention_mask=(ids > 0).long()).pooler_output, dim=-1)
    logits = image @ text.T * model.logit_scale.exp().clamp(max=50)  # [N, (1 + NEGATIVES) * N]
    n = len(images)
    own = logits.view(n, 1 + NEGATIVES, n).diagonal(dim1=0, dim2=2).T  # [N, 1 + NEGATIVES]
    right = torch.zeros(n, dtype=torch.long)
    loss = F.cross_entropy(logits, torch.arange(n)) + F.cross_entropy(logits[:, :n].T, torch.arange(n))
    return loss + 2 * F.cross_entropy(own, right) + module.seeing_loss(seen.last_hidden_state, samples)


def itm_loss(module: Seeing, images: Tensor, ids: Tensor, samples: list[Sample]) -> Tensor:
    """Does the caption match: the right ones, and NEGATIVES wrong ones of the same picture."""
    model = module.model
    tokens = model.vision_model(images).last_hidden_state  # [N, 1 + patches, D]
    spread = tokens.repeat(1 + NEGATIVES, 1, 1)
    text = model.text_encoder(ids, attention_mask=(ids > 0).long(), encoder_hidden_states=spread).last_hidden_state
    logits = model.itm_head(text[:, 0])  # [(1 + NEGATIVES) * N, 2]
    n = len(images)
    label = torch.zeros(len(logits), dtype=torch.long)
    label[:n] = 1
    margin = (logits[:, 1] - logits[:, 0]).view(1 + NEGATIVES, n)  # the right one must beat its wrong ones
    loss = F.cross_entropy(logits, label) + F.cross_entropy(margin.T, torch.zeros(n, dtype=torch.long))
    return loss + module.seeing_loss(tokens, samples)


_JUDGES: dict[str, tuple[Callable[[], Any], Callable[..., Tensor], Any]] = {
    "scene-clip": (new_clip, clip_loss, CLIPImageProcessorPil),
    "scene-itm": (new_itm, itm_loss, BlipImageProcessorPil),
}


def train(name: str, work: Path, steps: int, batch: int = 48) -> Any:
    build, loss_of, _ = _JUDGES[name]
    torch.manual_seed(5)
    module, tokenizer = Seeing(build()), new_tokenizer()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.02)
    state = TrainingState(work / f"{name}.safetensors", module, optimizer)
    log = Log(work / f"{name}.jsonl", steps)
    module.train()
    for step, rng in steps_of(state, steps, name):
        samples = [draw_sample(rng) for _ in range(batch)]
        texts = [s.caption for s in samples] + wrong_captions(samples, rng)
        images = degrade(torch.stack([s.image for s in samples]), rng)
        loss = loss_of(module, images, tokenize(tokenizer, texts), samples)
        state.update(loss, rate_at(step, steps, peak=1e-3))
        log.add(state.step, batch, loss=loss.item())
    state.use_ema()
    return module.model


def wrong_captions(samples: list[Sample], rng: random.Random) -> list[str]:
    """NEGATIVES captions for every picture, each wrong in one way: first one for all pictures, then the next."""
    texts = []
    for _ in range(NEGATIVES):
        for sample in samples:
            spec = wrong_spec(parse(sample.caption), rng)
            assert spec is not None
            texts.append(caption(spec, rng))
    return texts


def save(name: str, model: Any, folder: Path) -> None:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = _JUDGES[name][2](size=size, crop_size=size, image_mean=MEAN, image_std=STD)
    model.half().save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    processor.save_pretrained(folder)
