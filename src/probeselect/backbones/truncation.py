"""Which prompts a pipeline's tokenizers will cut, so that it can be said aloud."""

from collections.abc import Iterator, Sequence
from typing import Any


def truncations(pipe: Any, prompts: Sequence[str]) -> Iterator[str]:
    """Yield a line for every tokenizer of the pipeline that takes fewer tokens than some of the prompts have."""
    for name, tokenizer in pipe.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        limit = tokenizer.model_max_length
        lengths = [len(ids) for ids in tokenizer(list(prompts)).input_ids]
        cut = [i for i, length in enumerate(lengths) if length > limit]
        if cut:
            others = f", and {len(cut) - 1} others are too long" if len(cut) > 1 else ""
            first = f"prompt {cut[0] + 1} has {lengths[cut[0]]} tokens, {name} takes {limit}"
            yield f"{first}: what is beyond them is not read by it{others}"
