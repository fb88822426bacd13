"""Ranges of numbers that a probe's configuration and the options of its training share."""

from typing import Annotated

from msgspec import Meta

NORM_GROUPS = 8  # of channels, in every normalisation of the network

Rung = Annotated[float, Meta(gt=0, lt=1)]
Width = Annotated[int, Meta(ge=NORM_GROUPS, le=65536, multiple_of=NORM_GROUPS)]
