"""What the page shows as a picture, by colour scheme, and as a PNG file beside it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """Its file name without an ending, title, what it shows in a sentence, and its bytes for "light" and "dark"."""

    name: str
    title: str
    caption: str
    media: str  # MIME type of `schemes`
    schemes: Mapping[str, bytes]
    png: bytes


def of_image(name: str, title: str, caption: str, image: Image.Image) -> Picture:
    """A picture that is the same on light and on dark pages."""
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    data = out.getvalue()
    return Picture(name, title, caption, "image/png", {"light": data, "dark": data}, data)
