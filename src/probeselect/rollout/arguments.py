"""The pipeline's keywords: which may be given, and what each candidate of a batch gets of them.

Texts and embeddings are one for all, or one a prompt, or one a candidate. Pictures are one for all; where candidates
share a call each can have its own copy, since many pipelines encode as many pictures as they are given, each with its
own generator, and one picture for n generators with the first generator only.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from probeselect.backbones.families import prompt_keywords
from probeselect.backbones.loading import Backbone
from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError

# Candidates bring their own seeds and prompts, and each is one picture.
_REFUSED = {
    "prompt": "give it as the first argument",
    "generator": "every candidate has its own; give seed=, or seeds=[...], one for each candidate",
    "num_images_per_prompt": "say how many candidates with n=",
    "num_images": "say how many candidates with n=",
    "num_videos_per_prompt": "say how many candidates with n=",
    "return_dict": "leave it out",
}
_EMBEDDINGS = re.compile(r"(?!ip_adapter).*(embeds|embeddings|attention_mask)(_\w+)?")
_PICTURES = re.compile(r"(.*_)?(image|images|mask|video|masked_image_latents|image_latents)(_\d)?")
_NOT_PICTURES = re.compile(r"ip_adapter_.*|num_.*|output_.*")
# Here a list of pictures is several references for one candidate, not one picture for each.
_REFERENCES = re.compile(r"Flux2.*|.*EditPlus.*|.*Omni.*|VisualCloze.*|.*Layered.*")
_SECOND_DIMENSION = re.compile(r"(negative_)?prompt_embeds_llama3")  # [layers, rows, ...]
_IN_PLACE_OF_PROMPT = re.compile(r"prompt_embeds(_(?!mask)\w+)?")


def check_arguments(backbone: Backbone, candidates: Sequence[Candidate], arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for keywords that a batch sets itself or the pipeline does not take, and for lists of a length
    that fits neither prompts nor candidates."""
    pipeline = type(backbone.pipe)
    taken = inspect.signature(pipeline.__call__).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for name in arguments:
        if name in _REFUSED:
            raise UsageError(f"{name}: not to be given here; {_REFUSED[name]}")
        if name not in taken and not (takes_any and name.startswith("callback")):  # which hide in SD's **kwargs
            raise UsageError(f"{name}: {pipeline.__name__} takes no such argument")
    steps = arguments.get("num_inference_steps")
    if isinstance(steps, int) and steps < 1:
        raise UsageError(f"num_inference_steps = {steps}: must be at least 1")
    _Spread(backbone, candidates, candidates, arguments, copies=False).all()


def spread(
    backbone: Backbone,
    everyone: Sequence[Candidate],
    batch: Sequence[Candidate],
    arguments: Mapping[str, Any],
    copies: bool,
) -> dict[str, Any]:
    """The arguments of one pipeline call for the candidates of a batch.

    everyone: all candidates of the call of the sampler, in order. copies: every candidate gets its own copy of a
    picture that is given once.
    """
    return _Spread(backbone, everyone, batch, arguments, copies).all()


def has_pictures(arguments: Mapping[str, Any]) -> bool:
    """Whether any argument is a picture that candidates could have copies of."""
    return any(_is_picture(name, value) for name, value in arguments.items())


class _Spread:
    def __init__(
        self,
        backbone: Backbone,
        everyone: Sequence[Candidate],
        batch: Sequence[Candidate],
        arguments: Mapping[str, Any],
        copies: bool,
    ) -> None:
        self.pipe, self.batch, self.arguments, self.copies = backbone.pipe, batch, arguments, copies and len(batch) > 1
        self.places = {candidate: place for place, candidate in enumerate(everyone)}
        self.prompts = len({candidate.group for candidate in everyone})
        self.total = len(everyone)

    def all(self) -> dict[str, Any]:
        texts = prompt_keywords(self.pipe)
        done = {name: self._one(name, value, name in texts) for name, value in self.arguments.items()}
        replaced = any(v is not None and _IN_PLACE_OF_PROMPT.fullmatch(name) for name, v in self.arguments.items())
        if replaced or "prompt" not in inspect.signature(type(self.pipe).__call__).parameters:
            return done
        return {**done, "prompt": self._texts([candidate.prompt for candidate in self.batch])}

    def _one(self, name: str, value: Any, is_text: bool) -> Any:
        if value is None:
            return None
        if is_text:
            if isinstance(value, str):
                return self._texts([value] * len(self.batch))
            return self._texts(self._pick(name, list(value))) if isinstance(value, list | tuple) else value
        if name == "latents":
            given = len(value) if isinstance(value, Tensor) and value.ndim else 0
            if given != self.total:
                raise UsageError(
                    f"latents: {given} for {self.total} candidates; give a tensor with one for each, or leave it out: "
                    "the seeds draw them"
                )
            return value[[self.places[candidate] for candidate in self.batch]]
        if _EMBEDDINGS.fullmatch(name):
            return self._embeddings(name, value)
        if _is_picture(name, value):
            return self._picture(name, value)
        return value

    def _texts(self, texts: list[str]) -> str | list[str]:
        """One candidate alone gets its text as people write it: some pipelines take no list."""
        return texts[0] if len(texts) == 1 else texts

    def _pick(self, name: str, items: list[Any]) -> list[Any]:
        """One item a candidate of the batch, from one for all, one a prompt, or one a candidate."""
        n = len(items)
        if n == 1:
            return items * len(self.batch)
        if n == self.prompts:
            return [items[candidate.group] for candidate in self.batch]
        if n == self.total:
            return [items[self.places[candidate]] for candidate in self.batch]
        raise UsageError(
            f"{name}: {n} given for {self.prompts} prompt{'s' * (self.prompts > 1)} and {self.total} candidates; "
            "give one, one for each prompt, or one for each candidate"
        )

    def _embeddings(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim:
            dim = 1 if _SECOND_DIMENSION.fullmatch(name) and value.ndim > 1 else 0
            rows = self._pick(name, list(range(value.shape[dim])))
            return value[:, rows] if dim else value[rows]
        if isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value):
            if all(item.ndim >= 2 and len(item) == len(value[0]) for item in value) and value[0].ndim > 2:
                return [self._embeddings(name, item) for item in value]  # one an encoder, each with its rows
            return self._pick(name, value)  # one tensor a row
        return value

    def _picture(self, name: str, value: Any) -> Any:
        several = isinstance(value, list | tuple) and len(value) > 1
        nets = getattr(getattr(self.pipe, "controlnet", None), "nets", ())
        if _REFERENCES.fullmatch(type(self.pipe).__name__):
            return value
        if several and len(value) == len(nets) and "mask" not in name:  # one a control net
            return [self._copies(each, len(self.batch)) for each in value] if self.copies else value
        if several and self.prompts > 1 and len(value) == self.prompts:
            return [value[candidate.group] for candidate in self.batch]
        return self._copies(value, len(self.batch)) if self.copies else value

    def _copies(self, value: Any, n: int) -> Any:
        if isinstance(value, list | tuple):
            return list(value) * n if len(value) == 1 else value
        if isinstance(value, Tensor):
            batched = value if value.ndim >= 4 else value[None]
            return batched.expand(n, *batched.shape[1:]).clone() if len(batched) == 1 else value
        if isinstance(value, np.ndarray):
            array = value if value.ndim >= 4 else value[None]
            return np.repeat(array, n, 0) if len(array) == 1 else value
        return [value] * n


def _is_picture(name: str, value: Any) -> bool:
    if not _PICTURES.fullmatch(name) or _NOT_PICTURES.fullmatch(name):
        return False
    items = value if isinstance(value, list | tuple) else [value]
    return bool(items) and all(isinstance(item, Image.Image | np.ndarray | Tensor | list) for item in items)
