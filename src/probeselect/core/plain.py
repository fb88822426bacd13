"""Figures as JSON holds them."""

import math
from typing import Any


def plain(value: Any) -> Any:
    """Lists for tuples, and nothing for a figure that is not defined."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
