"""Evaluators: finished image and prompt -> reward, higher is better."""

from probeselect.evaluators.base import Evaluator
from probeselect.evaluators.table import EVALUATORS, load_evaluator, parse_evaluator

__all__ = ["EVALUATORS", "Evaluator", "load_evaluator", "parse_evaluator"]
