"""Joint attention of image and text in which few tokens of zeros stand for many.

Without a T5, Stable Diffusion 3's pipeline appends `max_sequence_length` tokens of zeros to every prompt, 256 by
default. They are alike and stay alike, so one of them with the weight of 256 in the softmax is the same function, at a
third of the work on pictures of 64 px.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ZERO_TOKENS = 256


class ZeroTokensAttention:
    """A processor of SD3's attention: the text tokens past the first `words` weigh as much as ZERO_TOKENS together."""

    def __init__(self, words: int) -> None:
        self.words = words

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Image tokens [N, I, D] and text tokens [N, T, D] to the same."""
        image, text = hidden_states, encoder_hidden_states
        sides = (
            (image, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k),
            (text, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k),
        )
        q, k, v = (
            torch.cat(parts, 2) for parts in zip(*(_projected(attn.heads, *side) for side in sides), strict=True)
        )  # [N, heads, I + T, width]
        zeros = text.shape[1] - self.words
        weights = torch.zeros(k.shape[2], dtype=q.dtype, device=q.device)
        weights[-zeros:] = math.log(ZERO_TOKENS / zeros)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=weights.expand(q.shape[2], -1))
        image_out, text_out = out.transpose(1, 2).flatten(2).split([image.shape[1], text.shape[1]], 1)
        return attn.to_out[0](image_out), text_out if attn.context_pre_only else attn.to_add_out(text_out)


def _projected(heads: int, x: Tensor, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any) -> list[Tensor]:
    q, k, v = (linear(x).unflatten(2, (heads, -1)).transpose(1, 2) for linear in (to_q, to_k, to_v))
    return [norm_q(q), norm_k(k), v]
