"""Early selection: the sampler that people call, its events and its results."""
