"""Stage `text`: tokenizer and text encoder.

The text encoder first learns to say what a caption asks for (counts, colours, roles, relation, background) from its
last token, so that the denoiser meets meaning instead of noise. Then it trains on with the denoiser.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from probeselect.embedded.captions import (
    BACKGROUNDS,
    COLOURS,
    NOUNS,
    RELATIONS,
    SIZES,
    VOCABULARY,
    Spec,
    caption,
    draw_spec,
    split_of,
)
from research.embedded.state import Log, TrainingState, rate_at, steps_of

MAX_TOKENS = 24
WIDTH = 128
_SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; unknown words are one token too."""
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, *VOCABULARY))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("removed"), pre_tokenizers.Whitespace()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(t, vocabulary[t]) for t in ("<start>", "<end>")]
    )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=MAX_TOKENS, **names)


def text_config(layers: int = 3) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_SPECIAL) + len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH,
        hidden_act="gelu",
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def facts_of(spec: Spec) -> list[int]:
    """The class of every fact of a caption, in the order of FACT_SIZES; 0 means 'not said'."""
    by_noun = {subject.noun: (order, subject) for order, subject in enumerate(spec.subjects)}
    facts = []
    for noun in NOUNS:
        order, subject = by_noun.get(noun, (-1, None))
        said = COLOURS.index(subject.colour) + 1 if subject and subject.colour else 0
        facts += [order + 1, subject.count if subject else 0, said]
    facts += [RELATIONS.index(spec.relation) + 1 if spec.relation else 0]
    facts += [BACKGROUNDS.index(spec.background) + 1 if spec.background else 0]
    size = spec.subjects[0].size
    return [*facts, SIZES.index(size) + 1 if size else 0]


FACT_SIZES = [3, 4, len(COLOURS) + 1] * len(NOUNS) + [
    len(RELATIONS) + 1,
    len(BACKGROUNDS) + 1,
    len(SIZES) + 1,
]


def facts_loss(logits: Tensor, facts: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over facts of the cross-entropy, and the share of captions with every fact right.

    logits [N, sum(FACT_SIZES)], facts [N, len(FACT_SIZES)].
    """
    parts = logits.split(FACT_SIZES, 1)
    loss = torch.stack([nn.functional.cross_entropy(part, facts[:, i]) for i, part in enumerate(parts)]).sum()
    right = torch.stack([part.argmax(1) == facts[:, i] for i, part in enumerate(parts)], 1).all(1)
    return loss, right.float().mean()


class FactReader(nn.Module):
    """Text encoder with a linear read-out of the facts at the end token."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(text_config())
        self.readout = nn.Linear(WIDTH, sum(FACT_SIZES))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.readout(self.text_encoder(input_ids).pooler_output)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """int64 [N, MAX_TOKENS], padded."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return encoded.input_ids


def train(work: Path, steps: int, batch: int = 128) -> CLIPTextModel:
    torch.manual_seed(2)
    module, tokenizer = FactReader(), new_tokenizer()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.01)
    state = TrainingState(work / "text.safetensors", module, optimizer)
    log = Log(work / "text.jsonl", steps)
    for step, rng in steps_of(state, steps, "text"):
        specs: list[Spec] = []
        texts: list[str] = []
        while len(specs) < batch:
            spec = draw_spec(rng)
            text = caption(spec, rng)
            if split_of(text) == "train":
                specs.append(spec)
                texts.append(text)
        logits = module(tokenize(tokenizer, texts))
        loss, right = facts_loss(logits, torch.tensor([facts_of(spec) for spec in specs]))
        state.update(loss, rate_at(step, steps, peak=1e-3))
        log.add(state.step, batch, loss=loss.item(), all_right=right.item())
    state.use_ema()
    return module.text_encoder
