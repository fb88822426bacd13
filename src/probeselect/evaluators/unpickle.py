"""A process of its own that turns a pickle into safetensors: `python -m probeselect.evaluators.unpickle FILE OUT`.

The only place of the package where `torch.load` is called, and always with `weights_only=True`: a pickle that wants
anything but tensors and plain containers is refused. Ends with 1 and one line on stderr where that fails.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

NESTS = ("state_dict", "model")  # where a checkpoint that holds more than tensors keeps them


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, each with memory of its own. Raises TypeError on anything else."""
    if isinstance(content, Mapping):
        content = next((content[nest] for nest in NESTS if isinstance(content.get(nest), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise TypeError(f"holds {type(content).__name__}, not tensors by name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(f"key {key!r} is {type(value).__name__}, must be a tensor")
    return {key: value.detach().contiguous().clone() for key, value in content.items()}


def main() -> None:
    """Read the file named first, write the one named second."""
    source, out = map(Path, sys.argv[1:])
    try:
        save_file(tensors_of(torch.load(source, map_location="cpu", weights_only=True)), out)
    except Exception as error:  # of many types: what unpickling meets is up to the file
        # Torch's own advice, to load with weights_only=False, is the last thing to repeat.
        named = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        sys.exit(f"{type(error).__name__}: {(named or str(error).splitlines() or ['no reason given'])[0]}")


if __name__ == "__main__":
    main()
