"""Names that come out of files: plain ones only, since some names of evaluators are commands and addresses."""

import re
from typing import Any


def is_plain_name(name: Any) -> bool:
    """Whether it is letters, digits, dots, dashes and underscores: never a path, an address or "exec:COMMAND"."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None
