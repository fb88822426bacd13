"""probeselect: start many candidates of a picture, score them early, finish only the promising ones.

from probeselect import SelectiveSampler

sampler = SelectiveSampler("embedded")
result = sampler("two dogs above a purple book", n=5, num_inference_steps=20)
result.images[0]

"""

from typing import TYPE_CHECKING, Any

from probeselect.core.version import VERSION as __version__

if TYPE_CHECKING:
    from probeselect.backbones.loading import Backbone, load_backbone
    from probeselect.core.candidates import Candidate
    from probeselect.core.errors import ProbeSelectError, UsageError
    from probeselect.core.stage import Scorer, Stage
    from probeselect.data.dataset import Dataset, scores_of
    from probeselect.data.table import Table
    from probeselect.evaluation.evaluate import evaluate
    from probeselect.evaluation.plan import plan
    from probeselect.evaluation.report import Report
    from probeselect.evaluators.base import Evaluator
    from probeselect.evaluators.table import load_evaluator
    from probeselect.policies.plan_file import load_plan
    from probeselect.policies.policy import Policy
    from probeselect.policies.stopping import StoppingRule, Until, UntilLikely
    from probeselect.probe.files import Probe, load_probe
    from probeselect.scorers.table import load_scorer
    from probeselect.select.events import Event, Finished, Judged, Kept, Scored, Stopped
    from probeselect.select.results import CandidateResult, Cost, Decision, Result
    from probeselect.select.sampler import Run, SelectiveSampler

_HOMES = {
    "Backbone": "backbones.loading",
    "Candidate": "core.candidates",
    "CandidateResult": "select.records",
    "Cost": "select.records",
    "Dataset": "data.dataset",
    "Decision": "select.records",
    "Evaluator": "evaluators.base",
    "Event": "select.events",
    "Finished": "select.events",
    "Judged": "select.events",
    "Kept": "select.events",
    "Policy": "policies.policy",
    "Probe": "probe.files",
    "ProbeSelectError": "core.errors",
    "Report": "evaluation.report",
    "Result": "select.results",
    "Run": "select.sampler",
    "Scored": "select.events",
    "Scorer": "core.stage",
    "SelectiveSampler": "select.sampler",
    "Stage": "core.stage",
    "Stopped": "select.events",
    "StoppingRule": "policies.stopping",
    "Table": "data.table",
    "Until": "policies.stopping",
    "UntilLikely": "policies.stopping",
    "UsageError": "core.errors",
    "evaluate": "evaluation.evaluate",
    "load_backbone": "backbones.loading",
    "load_evaluator": "evaluators.table",
    "load_plan": "policies.plan_file",
    "load_probe": "probe.files",
    "load_scorer": "scorers.table",
    "plan": "evaluation.plan",
    "scores_of": "data.dataset",
}
__all__ = [
    "Backbone",
    "Candidate",
    "CandidateResult",
    "Cost",
    "Dataset",
    "Decision",
    "Evaluator",
    "Event",
    "Finished",
    "Judged",
    "Kept",
    "Policy",
    "Probe",
    "ProbeSelectError",
    "Report",
    "Result",
    "Run",
    "Scored",
    "Scorer",
    "SelectiveSampler",
    "Stage",
    "Stopped",
    "StoppingRule",
    "Table",
    "Until",
    "UntilLikely",
    "UsageError",
    "__version__",
    "evaluate",
    "load_backbone",
    "load_evaluator",
    "load_plan",
    "load_probe",
    "load_scorer",
    "plan",
    "scores_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `probeselect --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'probeselect' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"probeselect.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
