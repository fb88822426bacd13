"""probeselect: start many candidates of a picture, score them early, finish only the promising ones."""

from typing import TYPE_CHECKING, Any

from probeselect.core.version import VERSION as __version__

if TYPE_CHECKING:
    from probeselect.backbones.loading import Backbone, load_backbone
    from probeselect.probe.files import load_probe
    from probeselect.probe.network import Probe
    from probeselect.scorers.scorers import Scorer
    from probeselect.select.results import Result
    from probeselect.select.sampler import SelectiveSampler

__all__ = ["Backbone", "Probe", "Result", "Scorer", "SelectiveSampler", "__version__", "load_backbone", "load_probe"]

_HOMES = {
    "Backbone": "backbones.loading",
    "Probe": "probe.network",
    "Result": "select.results",
    "Scorer": "scorers.scorers",
    "SelectiveSampler": "select.sampler",
    "load_backbone": "backbones.loading",
    "load_probe": "probe.files",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `probeselect --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'probeselect' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"probeselect.{_HOMES[name]}"), name)
