"""Published checkpoints in the layout of transformers: renames, splits and turns tensors, infers sizes from shapes.

Pure functions from state dicts, in the order of the row's files, to `config.json` and the tensors under the names
that transformers' classes use. Knows no file and imports no transformers. Every published key is renamed, or listed
as not needed; another one is a ProbeSelectError that names it, and so is a missing one that a size is read from.
Whatever else is missing is refused when the row loads the folder.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import isqrt
from typing import Any

from torch import Tensor

from probeselect.core.errors import ProbeSelectError

State = dict[str, Tensor]
Rules = Sequence[tuple[str, str | None]]  # (the whole key as a regex, the new key; None: not needed)
HeadWidths = tuple[int, int]  # of an attention head of text and vision model
# The files' state dicts and the row's settings -> config.json (None: the one of the row's processor) and tensors.
Layout = Callable[..., tuple[dict[str, Any] | None, State]]

_POSITION_IDS: Rules = [(r"(?:.*\.)?embeddings\.position_ids", None)]  # 0, 1, 2, ... in older files


def _blocks(published: str, ours: str, rules: Rules) -> Rules:
    """Return the rules of one transformer block as those of all blocks of a tower."""
    return [(rf"{published}\.(?P<block>\d+)\.{old}", rf"{ours}.\g<block>.{new}") for old, new in rules]


# open_clip's CLIP: github.com/mlfoundations/open_clip, src/open_clip/model.py and transformer.py.
_OPEN_CLIP_BLOCK: Rules = [
    (r"ln_(?P<n>[12])\.(?P<of>weight|bias)", r"layer_norm\g<n>.\g<of>"),
    (r"attn\.out_proj\.(?P<of>weight|bias)", r"self_attn.out_proj.\g<of>"),
    (r"attn\.(?P<part>[qkv])_proj\.(?P<of>weight|bias)", r"self_attn.\g<part>_proj.\g<of>"),  # made by _split
    (r"mlp\.c_fc\.(?P<of>weight|bias)", r"mlp.fc1.\g<of>"),
    (r"mlp\.c_proj\.(?P<of>weight|bias)", r"mlp.fc2.\g<of>"),
]
_OPEN_CLIP: Rules = [
    (r"logit_scale", "logit_scale"),
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.(weight|bias)", r"text_model.final_layer_norm.\1"),
    (r"text_projection", "text_projection.weight"),
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.ln_pre\.(weight|bias)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"visual\.proj", "visual_projection.weight"),
    *_blocks(r"transformer\.resblocks", "text_model.encoder.layers", _OPEN_CLIP_BLOCK),
    *_blocks(r"visual\.transformer\.resblocks", "vision_model.encoder.layers", _OPEN_CLIP_BLOCK),
]
# ImageReward.pt: github.com/THUDM/ImageReward, ImageReward/ImageReward.py and models/BLIP.
_IMAGEREWARD_BLOCK: Rules = [
    (r"norm(?P<n>[12])\.(?P<of>weight|bias)", r"layer_norm\g<n>.\g<of>"),
    (r"attn\.qkv\.(?P<of>weight|bias)", r"self_attn.qkv.\g<of>"),
    (r"attn\.proj\.(?P<of>weight|bias)", r"self_attn.projection.\g<of>"),
    (r"mlp\.fc(?P<n>[12])\.(?P<of>weight|bias)", r"mlp.fc\g<n>.\g<of>"),
]
_IMAGEREWARD: Rules = [
    (r"blip\.visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(weight|bias)", r"vision_model.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.norm\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    *_blocks(r"blip\.visual_encoder\.blocks", "vision_model.encoder.layers", _IMAGEREWARD_BLOCK),
    *_POSITION_IDS,
    (r"blip\.text_encoder\.(.+)", r"text_encoder.\1"),
    (r"blip\.(?:vision|text)_proj\.(?:weight|bias)", None),  # of BLIP's contrastive loss
    (r"mlp\.layers\.(\d+)\.(weight|bias)", r"head.\1.\2"),
]
_HEAD: Rules = [(r"layers\.(\d+)\.(weight|bias)", r"head.\1.\2")]
_VISION_ONLY: Rules = [
    *_POSITION_IDS,
    (r"(?:text_model|text_projection)\..+|logit_scale", None),
    (r"((?:vision_model|visual_projection)\..+)", r"\1"),
]


def as_published(state: State) -> tuple[None, State]:
    """Return a checkpoint that has transformers' names already; the processor's config.json describes it."""
    return None, rename(state, [*_POSITION_IDS, (r"(.+)", r"\1")])


def open_clip(state: State, *, head_widths: HeadWidths, hidden_act: str) -> tuple[dict[str, Any], State]:
    """Return open_clip's CLIP as a CLIPModel.

    open_clip keeps query, key and value in one matrix [3 D, D], and its projections as [D, out], not [out, D].
    Heads cannot be read from shapes: they are 64 wide, but 80 in the vision model of ViT-H-14.
    """
    tensors = rename(_split(state), _OPEN_CLIP)
    for key in ("text_projection.weight", "visual_projection.weight"):
        tensors[key] = _get(tensors, key).T.contiguous()
    return clip_config(tensors, head_widths, hidden_act), tensors


def clip_head(
    backbone: State, head: State, *, head_widths: HeadWidths, hidden_act: str
) -> tuple[dict[str, Any], State]:
    """Return the vision part of a CLIPModel and a head of keys `layers.N.weight` as a ClipHeadModel."""
    tensors = rename(backbone, _VISION_ONLY)
    tensors |= numbered(rename(head, _HEAD))
    config = {
        "architectures": ["ClipHeadModel"],
        "model_type": "clip_vision_model",
        **_clip_vision(tensors, head_widths[1], hidden_act),
        "head_widths": linear_widths(tensors),
    }
    return config, tensors


def imagereward(state: State, *, head_widths: HeadWidths) -> tuple[dict[str, Any], State]:
    """Return ImageReward.pt as an ImageRewardModel."""
    tensors = numbered(rename(state, _IMAGEREWARD))
    words, width = _shape(tensors, "text_encoder.embeddings.word_embeddings.weight")
    text = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
        "num_hidden_layers": _count(tensors, r"text_encoder\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": _heads(width, head_widths[0], "text"),
        "max_position_embeddings": _shape(tensors, "text_encoder.embeddings.position_embeddings.weight")[0],
        "bos_token_id": words - 2,  # [DEC], which no text has here
        "sep_token_id": None,
    }
    vision = {**_vision(tensors, head_widths[1]), "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    config = {
        "architectures": ["ImageRewardModel"],
        "model_type": "blip",
        "text_config": text,
        "vision_config": vision,
        "head_widths": linear_widths(tensors),
    }
    return config, tensors


def clip_config(tensors: State, head_widths: HeadWidths, hidden_act: str) -> dict[str, Any]:
    """Return the config.json of a CLIPModel, its sizes read from the tensors' shapes.

    The last two tokens are those that begin and end a text, as in CLIP's vocabulary.
    """
    words, width = _shape(tensors, "text_model.embeddings.token_embedding.weight")
    text = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(tensors, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": _heads(width, head_widths[0], "text"),
        "max_position_embeddings": _shape(tensors, "text_model.embeddings.position_embedding.weight")[0],
        "projection_dim": _shape(tensors, "text_projection.weight")[0],
        "hidden_act": hidden_act,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text["projection_dim"],
        "text_config": text,
        "vision_config": _clip_vision(tensors, head_widths[1], hidden_act),
    }


def rename(state: Mapping[str, Tensor], rules: Rules) -> State:
    """Return the tensors under new names, by the first rule that fits. Raises ProbeSelectError where none does."""
    renamed: State = {}
    for key, value in state.items():
        for old, new in rules:
            if match := re.fullmatch(old, key):
                if new is not None:
                    renamed[match.expand(new)] = value
                break
        else:
            raise ProbeSelectError(f"surplus key {key!r}: no such tensor in this kind of checkpoint")
    return renamed


def numbered(state: State) -> State:
    """Return the state with the layers of `head.N.weight` numbered 0, 1, 2, ...: published ones count dropouts too."""
    old = sorted({int(key.split(".")[1]) for key in state if key.startswith("head.")})
    return {re.sub(r"^head\.(\d+)\.", lambda m: f"head.{old.index(int(m[1]))}.", key): v for key, v in state.items()}


def linear_widths(tensors: State) -> list[int]:
    """Return the widths of the layers `head.N.weight`, the input's first. Raises ProbeSelectError if they don't fit."""
    count = _count(tensors, r"head\.(\d+)\.")
    shapes = [_shape(tensors, f"head.{i}.weight") for i in range(count)]  # [out, in] each
    if not shapes:
        raise ProbeSelectError("missing key 'layers.0.weight': there is no head")
    widths = [shapes[0][1], *(shape[0] for shape in shapes)]
    if widths[-1] != 1 or any(before[0] != after[1] for before, after in pairwise(shapes)):
        raise ProbeSelectError(
            f"wrong shape: the head's layers are {shapes}, each must take what the last one gives, 1"
        )
    return widths


def _clip_vision(tensors: State, head_width: int, hidden_act: str) -> dict[str, Any]:
    projection = _shape(tensors, "visual_projection.weight")[0]
    return {**_vision(tensors, head_width), "projection_dim": projection, "hidden_act": hidden_act}


def _vision(tensors: State, head_width: int) -> dict[str, Any]:
    """Return the sizes of a vision model with class token and square patches, of CLIP or BLIP."""
    width, _, _, patch = _shape(tensors, "vision_model.embeddings.patch_embedding.weight")
    position = "vision_model.embeddings.position_embedding"  # BLIP's is a bare tensor [1, places, D]
    places = _shape(tensors, position if position in tensors else f"{position}.weight")[-2]
    return {
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(tensors, r"vision_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": _heads(width, head_width, "vision"),
        "image_size": isqrt(places - 1) * patch,
        "patch_size": patch,
    }


def _split(state: State) -> State:
    """Return the state with `in_proj_weight` and `in_proj_bias` [3 D, ...] as those of query, key and value."""
    parts: State = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", key):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                parts[f"{match[1]}{letter}_proj.{match[2]}"] = part.clone()
        else:
            parts[key] = value
    return parts


def _heads(width: int, head_width: int, tower: str) -> int:
    if head_width < 1 or width % head_width:
        raise ProbeSelectError(f"head_widths: {head_width} does not divide the {tower} model's width {width}")
    return width // head_width


def _count(tensors: State, pattern: str) -> int:
    return 1 + max((int(match[1]) for key in tensors if (match := re.match(pattern, key))), default=-1)


def _get(tensors: State, key: str) -> Tensor:
    if key not in tensors:
        raise ProbeSelectError(f"missing key {key!r}")
    return tensors[key]


def _shape(tensors: State, key: str) -> list[int]:
    return list(_get(tensors, key).shape)
