"""What this machine and these files are: speed as ratios, and what a probe, a model or a dataset holds."""
