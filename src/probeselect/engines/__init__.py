"""Engines: where a collection runs. One process, one a device, the ranks of `accelerate launch`, or Ray."""
