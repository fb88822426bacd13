"""What the page shows as a picture, by colour scheme, and as a PNG file beside it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    small = _encoded(image, format="WEBP", quality=85)  # in the page; the file beside it is exact
    png = _encoded(image, format="PNG", optimize=True)
    return Picture(name, title, caption, "image/webp", {"light": small, "dark": small}, png)


def _encoded(image: Image.Image, **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, **settings)
    return out.getvalue()
