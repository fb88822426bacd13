"""What tiny pipelines are made of: text encoders, tokenizers of letters, autoencoders, schedulers.

All weights are random and fixed; nothing is downloaded.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HIDDEN = 16


_UNINITIALISED = ("pad_token", "gate_up_proj", "down_proj")  # by diffusers: they hold whatever memory held


def _seeded(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    built = build(*args, **kwargs)
    if isinstance(built, nn.Module):
        for name, parameter in built.named_parameters():
            if name.endswith(_UNINITIALISED):
                nn.init.normal_(parameter, std=0.2)
    return built


def _clip_tokenizer() -> Any:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in LETTERS:
        vocab[letter] = len(vocab)
        vocab[f"{letter}</w>"] = len(vocab)
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def _clip_config() -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, num_attention_heads=2, num_hidden_layers=2, vocab_size=54,
        projection_dim=HIDDEN, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def _t5_tokenizer() -> Any:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=16)


def _t5(width: int = HIDDEN) -> Any:
    config = transformers.T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2)
    return _seeded(transformers.T5EncoderModel, config)


def _vae(latent_channels: int, blocks: int = 2) -> Any:
    return _seeded(
        diffusers.AutoencoderKL,
        block_out_channels=(8,) * blocks, latent_channels=latent_channels, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        shift_factor=0.0,
    )  # fmt: skip


def _flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler()


def _llm_tokenizer(build: Any = transformers.Qwen2Tokenizer, **specials: str) -> Any:
    vocab = {token: index for index, token in enumerate([*specials.values(), *LETTERS, "Ġ"])}
    tokenizer = build(vocab=vocab, merges=[], model_max_length=256, **specials)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _qwen_tokenizer() -> Any:
    return _llm_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>")


def _gemma() -> dict[str, Any]:
    tokenizer = _llm_tokenizer(
        transformers.GemmaTokenizer,
        pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
    config = transformers.Gemma2Config(**_LLM, head_dim=8, query_pre_attn_scalar=8)
    return {"tokenizer": tokenizer, "text_encoder": _seeded(transformers.Gemma2Model, config)}


_LLM = {
    "vocab_size": 40, "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def _movq() -> Any:
    return _seeded(
        diffusers.VQModel,
        block_out_channels=(8, 16), latent_channels=4, vq_embed_dim=4, num_vq_embeddings=8, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _ready(pipe: DiffusionPipeline) -> DiffusionPipeline:
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
