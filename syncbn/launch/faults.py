"""What ends a run on all ranks alike."""


class Fault(Exception):
    """A reason for all ranks to end. Its text says it in full, so that a command prints that and no traceback."""
