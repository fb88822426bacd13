"""The embedded backbones, their evaluators and their probes: everything that trains them."""
