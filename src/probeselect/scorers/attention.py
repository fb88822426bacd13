"""Scores from cross-attention, without training: does every word of the prompt own a place in the picture yet?

Knows which text tokens make which word, and the formula. Does not know denoisers (cross_attention.py reads the maps).
In the spirit of Attend-and-Excite (Chefer et al., SIGGRAPH 2023, arXiv 2301.13826), which calls a subject neglected
when no place attends to it, and of HEaD (Betti et al., Hallucination Early Detection), which looks for that early, so
as to stop the seed.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage, whole_maps

# Words that claim no place of their own. There is no tagger of parts of speech: all others count, colours, numbers and
# verbs too.
_STOP_WORDS = """
a an the this that these those some any and or but not no nor as of in on at to by for from with without into onto over
under above below behind beside between near next against around through inside outside top left right front is are was
were be been being has have having it its he his she her they their there which who whose while very photo photograph
picture image painting drawing illustration render background
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
KERNEL, SIGMA = 3, 0.5  # cells; of the smoothing, as in Attend-and-Excite
MEAN_WEIGHT = 1e-3  # of the mean over words, which orders candidates of one minimum

Words = Sequence[Sequence[int]]  # of one prompt: the indices of the tokens of every word


def words_of(prompt: str, tokenizer: Any) -> list[list[int]]:
    """The tokens of every content word of a prompt: their indices in the tokenizer's output, [words][tokens].

    A word is a run of letters and digits that is no stop word; it has as many tokens as the tokenizer makes of it, and
    is left out where the tokenizer cuts the prompt before it. Raises UsageError for a tokenizer that cannot say where
    in the text its tokens lie.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"attention: {type(tokenizer).__name__} cannot say which tokens belong to which word")
    spans = tokenizer(prompt, truncation=True, return_offsets_mapping=True)["offset_mapping"]
    found = (match for match in re.finditer(r"\w+", prompt) if match[0].lower() not in STOP_WORDS)
    words = [[i for i, (a, b) in enumerate(spans) if max(a, m.start()) < min(b, m.end())] for m in found]
    return [word for word in words if word]  # start, end and padding lie nowhere in the text


def neglect_scores(maps: Tensor, words: Sequence[Words]) -> Tensor:
    """How much the most neglected word owns, of every candidate: [N], from 0 to 1.001; higher is better.

    maps: attention probabilities of every token, [N, T, H, W]. words: of every candidate's prompt, see `words_of`.

        share_w(x) = a_w(x) / sum over words v of a_v(x)       a_w = sum of the maps of the tokens of word w
        owns_w     = max over places x of (G * share_w)(x)     G a Gaussian of 3 x 3 cells, sigma 0.5, mirrored edges
        score      = min over w of owns_w + 0.001 * mean over w of owns_w

    Attend-and-Excite takes the softmax over all tokens but start and end, sharpened a hundredfold, in place of
    share_w, and 1 - owns_w as its loss, of the worst subject. With one word every candidate has 1.001, without any
    word 0: the scores then say nothing.
    """
    return torch.stack([_neglect(of_one, its) for of_one, its in zip(maps.float(), words, strict=True)])


def _neglect(maps: Tensor, words: Words) -> Tensor:
    if not words:
        return maps.new_zeros(())
    per_word = torch.stack([maps[list(word)].sum(0) for word in words])  # [words, H, W]
    shares = per_word / per_word.sum(0).clamp_min(torch.finfo(maps.dtype).tiny)
    owns = _smoothed(shares).amax((1, 2))
    return owns.min() + MEAN_WEIGHT * owns.mean()


def _smoothed(maps: Tensor) -> Tensor:
    """Maps [words, H, W] under a Gaussian of KERNEL x KERNEL cells."""
    distance = torch.arange(KERNEL, device=maps.device) - KERNEL // 2
    weights = (-(distance**2) / (2 * SIGMA**2)).exp()
    weights = (weights / weights.sum()).to(maps)
    padded = F.pad(maps[:, None], (KERNEL // 2,) * 4, mode="reflect")
    return F.conv2d(padded, (weights[:, None] * weights)[None, None])[:, 0]


class AttentionScorer:
    """How much the most neglected word of the prompt owns of the U-Net's cross-attention, see `neglect_scores`.

    tokenizer: loads the backbone's. Maps that were reduced to fewer cells are scored as they are.
    """

    name = "attention"
    taps = ("attention",)
    previews = False

    def __init__(self, tokenizer: Callable[[], Any]) -> None:
        self._tokenizer = tokenizer

    def check_prompts(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if len(words_of(prompt, self.tokenizer)) < 2:
                raise UsageError(f"scorer attention: weighs words against each other, and {prompt!r} has less than two")

    @cached_property
    def tokenizer(self) -> Any:
        return self._tokenizer()

    def __call__(self, stage: Stage) -> Tensor:
        words = {prompt: words_of(prompt, self.tokenizer) for prompt in set(stage.prompts)}
        return neglect_scores(whole_maps(stage, "attention"), [words[prompt] for prompt in stage.prompts])
