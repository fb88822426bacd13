"""Layer 0: candidates, rungs, policies, metrics and losses. Pure: no diffusers, no files but plan.json."""
