"""Faults that end a run on all ranks."""


class Fault(Exception):
    """A reason for all ranks to end. Its text is complete, so commands print it without a traceback."""
