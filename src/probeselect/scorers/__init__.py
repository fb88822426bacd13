"""Scorers: partial candidates -> a predicted score of each."""
