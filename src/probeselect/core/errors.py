"""Errors whose message is all a user needs to read."""


class ProbeSelectError(Exception):
    """Something failed; the message is one line: the file or option, the value, and what would be right."""


class UsageError(ProbeSelectError, ValueError):
    """The caller asked for something that cannot be; the command line exits with 2."""


class Stopped(ProbeSelectError):
    """A run was asked to stop, and did after the step that it was in."""
