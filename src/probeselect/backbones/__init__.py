"""Frozen diffusers pipelines: what is known of each family, how taps are read, how models are loaded."""
