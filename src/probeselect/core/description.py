"""What a backbone is, in the fields that a probe and the data that it is trained on must share with it."""

from typing import Annotated

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(max_length=200)]
Size = Annotated[int, Meta(ge=1, le=65536)]  # of channels and sides


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """`Backbone.describe()`. The configuration of a dataset is one, and so is that of a probe."""

    denoiser: Name  # of its class
    architecture: Name  # digest of the denoiser's configuration
    latent_channels: Size | None  # None: the denoiser does not say
