"""Evaluators: finished image and prompt -> reward, higher is better."""
