"""`python -m probeselect`, for launchers that take a module."""

from probeselect.cli import main

main()
