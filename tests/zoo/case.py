"""What a case of the zoo is: a pipeline class, how to build it, and calls that people make of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Case:
    """One pipeline class.

    name: of the class in diffusers.
    build: returns a new tiny pipeline with fixed weights, all modules in eval mode.
    arguments: the keywords of its plainest call besides the prompt and the generator: every one that it needs.
        `pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), **arguments)` runs in well under a second.
    variants: by a short name, keywords that are added to `arguments` for another kind of call.
    takes_prompt: False for a pipeline whose call has no `prompt`.
    note: why a class cannot be called as the others, "" for most.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    arguments: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    takes_prompt: bool = True
    note: str = ""
