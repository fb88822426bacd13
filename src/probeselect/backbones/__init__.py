"""Frozen diffusers pipelines: what is known of each family, how activations are read, how models are loaded."""
