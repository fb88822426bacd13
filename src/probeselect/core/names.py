"""Names that come out of files: plain ones only, since some names of evaluators are commands and addresses."""

import re
from pathlib import Path
from typing import Any

DTYPES = ("fp32", "bf16", "fp16")


def is_plain_name(name: Any) -> bool:
    """Whether it is letters, digits, dots, dashes and underscores: never a path, an address or "exec:COMMAND"."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None


def short_name(scorer: str) -> str:
    """ "fusion:some/where/mine" -> "fusion:mine": a scorer is called the same wherever its folder lies."""
    kind, _, place = scorer.rpartition(":")
    return f"{kind}:{Path(place).name}" if kind else Path(place).name
