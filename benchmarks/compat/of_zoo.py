"""Rows of the zoo: the plain call of every pipeline class and each of its variants, and of each family's builder."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import zoo
from tiny import TINY
from zoo.case import Case

from compat.trial import Trial

# Title of the page's section -> modules of the zoo.
GROUPS = {
    "SD 1 and 2": ("stable_diffusion", "stable_diffusion_more"),
    "SDXL": ("stable_diffusion_xl",),
    "SD3": ("stable_diffusion_3",),
    "FLUX and Chroma": ("flux",),
    "Qwen-Image and Z-Image": ("qwen_and_z_image",),
    "IP adapters": ("ip_adapters",),
    "Other transformers": ("text_to_image", "other_transformers"),
    "Pixels, Kandinsky, cascades": ("pixel_and_kandinsky",),
    "Older families": ("older",),
    "Video": ("video", "video_2", "video_3"),
}
FAMILIES = "Text to image, by family"


def cases() -> Iterator[tuple[str, Case]]:
    """Every case of the zoo with its section."""
    known = {module: group for group, modules in GROUPS.items() for module in modules}
    for found in pkgutil.iter_modules(zoo.__path__):
        for case in getattr(importlib.import_module(f"zoo.{found.name}"), "CASES", ()):
            yield known.get(found.name, found.name), case


def trials() -> Iterator[Trial]:
    met: Counter[str] = Counter()
    for group, case in cases():
        met[case.name] += 1
        other = f" ({met[case.name]})" if met[case.name] > 1 else ""  # another model of the same class
        for kind, more in {"plain": {}, **case.variants}.items():
            yield of_case(group, case, kind + other, more)
    for family, (build, arguments) in TINY.items():
        yield of_family(family, build, arguments, "plain", guess_rung(arguments))


def of_case(group: str, case: Case, kind: str, more: Mapping[str, Any], **options: Any) -> Trial:
    arguments = {**case.arguments, **more}
    return Trial(
        case.name, kind, group, case.build, arguments, takes_prompt=case.takes_prompt,
        **{"tolerance": tolerance(arguments), **options},
    )  # fmt: skip


def of_family(family: str, build: Any, arguments: Mapping[str, Any], kind: str, rung: float, **options: Any) -> Trial:
    return Trial(
        f"family {family}", kind, FAMILIES, build, arguments, rungs=(rung,),
        **{"tolerance": tolerance(arguments), **options},
    )  # fmt: skip


def guess_rung(arguments: Mapping[str, Any]) -> float:
    return 0.5 if arguments.get("num_inference_steps", 5) == 4 else 0.4


def tolerance(arguments: Mapping[str, Any]) -> float:
    """One level of 255 for pictures of whole numbers."""
    return 1.01 / 255 if arguments.get("output_type") == "pil" else 1e-3
