"""config.json of a probe: what it reads and predicts, what it was made for and how it was trained."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from probeselect.core.description import Description, Size
from probeselect.core.errors import UsageError
from probeselect.core.files import checked, read_json, to_json
from probeselect.core.names import is_plain_name
from probeselect.probe.options import TrainOptions
from probeselect.probe.ranges import Rung, Width

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
FORMAT = 1
MAX_CONFIG = 1 << 20  # bytes
MAX_FEATURES = 1 << 24  # values of one picture's features
RUNG_TOLERANCE = 0.026  # a rung in between: half a step of 20

Sizes = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=64)]  # one for every tap


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is predicted for one evaluator. `shape` is that of its features: (F, H, W) maps or a vector (D,)."""

    evaluator: str
    kind: Literal["scalar", "features"]
    shape: Annotated[tuple[Size, ...], Meta(max_length=4)] = ()

    def __post_init__(self) -> None:
        _check_name(self.evaluator)
        if (self.kind == "features" and not self.shape) or math.prod(self.shape) > MAX_FEATURES:
            raise UsageError(f"shape {list(self.shape)}: must be that of 1 to {MAX_FEATURES} features")


class Fusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """score = probe * (the probe's score) + preview * (the preview's reward), at one rung."""

    evaluator: str
    rung: float
    probe: float
    preview: float

    def __post_init__(self) -> None:
        _check_name(self.evaluator)

    def __call__(self, scores: "Tensor", rewards: "Tensor") -> "Tensor":
        """Fused scores from the probe's and the previews' rewards, all of one shape."""
        return self.probe * scores + self.preview * rewards


class Trained(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a probe was trained; nothing of it is known of one that has no such record."""

    train_prompts: str = ""  # digest of all of them, in their order
    options: TrainOptions | None = None  # with the taps, rungs and evaluators that the dataset had


class ProbeConfig(Description, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that must agree between a probe, a backbone and an evaluator."""

    backbone: str  # name, for people
    taps: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
    tap_channels: Sizes  # of the taps as they come
    projected_channels: Sizes  # after the fixed projection
    rungs: Annotated[tuple[Rung, ...], Meta(min_length=1, max_length=1000)]  # trained on
    heads: Annotated[tuple[Head, ...], Meta(min_length=1, max_length=64)]
    prompt_width: Annotated[int, Meta(ge=0, le=65536)] = 0  # of the backbone's prompt embedding; 0: not read
    grid: Annotated[int, Meta(ge=1, le=1024)] = (
        16  # height and width that maps are brought to; their aspect ratio is kept
    )
    width: Width = 32
    format: int = FORMAT
    fusions: Annotated[tuple[Fusion, ...], Meta(max_length=4096)] = ()  # with the preview's reward
    training: Trained = Trained()

    def __post_init__(self) -> None:
        if not len(self.taps) == len(self.tap_channels) == len(self.projected_channels):
            raise UsageError("taps, tap_channels and projected_channels must be of one length")
        if len({module_name(head.evaluator) for head in self.heads}) < len(self.heads):
            raise UsageError(f"heads: {', '.join(head.evaluator for head in self.heads)[:60]}: one for each evaluator")

    @property
    def default_head(self) -> str:
        return self.heads[0].evaluator


def read_config(folder: Path) -> ProbeConfig:
    """Raises UsageError in one line that names the file and the field that is missing, unknown or wrong."""
    return read_json(folder / CONFIG, ProbeConfig, MAX_CONFIG, FORMAT)


def config_json(config: ProbeConfig) -> bytes:
    """What `read_config` reads. Raises UsageError for a configuration that it would refuse."""
    return to_json(checked(config, "probe"))


def module_name(evaluator: str) -> str:
    """What its head is called among the network's modules, whose names hold no dot."""
    return evaluator.replace(".", "_")


def _check_name(evaluator: str) -> None:
    """A name that comes out of a file must not be a command or an address."""
    if not is_plain_name(evaluator):
        raise UsageError(f"evaluator {evaluator[:60]!r}: a file may hold a plain name only")
