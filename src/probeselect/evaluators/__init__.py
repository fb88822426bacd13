"""Evaluators: finished image and prompt -> reward, higher is better."""

from probeselect.evaluators.base import Evaluator, has_features, judge
from probeselect.evaluators.table import (
    EVALUATORS,
    Row,
    evaluator_names,
    load_evaluator,
    off_the_typical,
    parse_evaluator,
    parse_evaluators,
)

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "Row",
    "evaluator_names",
    "has_features",
    "judge",
    "load_evaluator",
    "off_the_typical",
    "parse_evaluator",
    "parse_evaluators",
]
