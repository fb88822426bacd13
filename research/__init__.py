"""What made the weights that ship and the figures in the docs. Not part of the package: see README.md."""
