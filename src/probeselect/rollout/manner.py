"""How the candidates of one kind of call may share a pipeline call, as far as has been found out.

Knows what is tried next when a batch was wrong or failed: without copies of the pictures, one prompt at a time, one
candidate at a time, half as many. What was found out is remembered for the pipeline's next call of the same kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from probeselect.core.candidates import Candidate
from probeselect.rollout.callbacks import DropsRows
from probeselect.rollout.noise import SharedNoise
from probeselect.rollout.rows import Indivisible


class Unlike(Exception):
    """Candidates that share a call are not given what they are given alone."""


WRONG_TOGETHER = (Unlike, SharedNoise, Indivisible, DropsRows)
# Their denoisers mix the rows of a batch, which no look at their inputs shows: OmniGen's gives all rows the text
# positions of the first (diffusers 0.42.1).
_ONE_PROMPT = frozenset(("OmniGenPipeline",))
_SIZES = ("height", "width", "num_frames", "video_length", "output_type")


@dataclass
class Manner:
    """What is known of one kind of call."""

    copies: bool = True  # each candidate gets its own copy of a picture that is given once
    mixed: bool = True  # candidates of several prompts share a call
    most: int | None = None  # candidates in a call
    checked: bool = False  # a batch of it has been right
    decoded: bool = False  # and its pictures were those of its candidates

    def narrow(
        self, name: str, batch: Sequence[Candidate], error: Exception, *, begun: bool, pictures: bool
    ) -> str | None:
        """Take the next step down after a batch of several went wrong; a sentence for the user where it costs time.

        name: of the pipeline. begun: whether steps had been computed. pictures: whether there are any to copy.
        """
        n = len(batch)
        if is_out_of_memory(error):
            self.most = n // 2
            return f"Out of memory with {n} candidates in a call: {self.most} at a time from here."
        if self.copies and pictures:
            self.copies = False
            return None
        self.copies = pictures
        if self.mixed and len({candidate.group for candidate in batch}) > 1:
            self.mixed = False
            return f"{name} is right for one prompt in a call only, so prompts run one after the other."
        if isinstance(error, WRONG_TOGETHER):
            self.most = 1
            return f"{name} is right for one candidate in a call only with these arguments, so each runs alone."
        self.most = n // 2 if begun else 1
        return f"{name} fails with {n} candidates in a call ({one_line(error)}): {self.most} at a time from here."


_MANNERS: WeakKeyDictionary[Any, dict[Any, Manner]] = WeakKeyDictionary()


def manner_of(pipe: Any, arguments: Mapping[str, Any]) -> Manner:
    """What is known of calls like this one; to be changed in place."""
    components = tuple((name, id(value)) for name, value in pipe.components.items())
    forms: list[Any] = []
    for name, value in sorted(arguments.items()):
        if name in _SIZES or isinstance(value, bool | None):
            forms.append((name, value))
        elif isinstance(value, int | float):
            forms.append((name, value > 1))  # guidance may be off
        else:
            size = getattr(value, "shape", None) or getattr(value, "size", None)
            forms.append((name, type(value).__name__, str(size)))
    kind = (getattr(pipe, "_execution_device", None), components, *forms)
    known = _MANNERS.setdefault(pipe, {})
    return known.setdefault(kind, Manner(mixed=type(pipe).__name__ not in _ONE_PROMPT))


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
