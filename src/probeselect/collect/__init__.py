"""Training data: candidates of many prompts, their activations, pictures and rewards, as shards."""
