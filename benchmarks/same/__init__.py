"""Parts of benchmarks/same_as_before.py: the commands, the two trees, the comparing, and what may differ."""
