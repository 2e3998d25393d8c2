"""Scheduling policy of the ranks' threads."""

import os


def let_threads_finish() -> None:
    """Set Linux's SCHED_BATCH for this process and for threads and processes that it starts later.

    Under it a thread that wakes up doesn't preempt a running one. Otherwise gloo's network thread, woken by a message,
    preempts the thread that holds the connection's lock, and spins on the lock until its time slice ends: an all-reduce
    of 0.1 ms then takes 3 to 4 ms if ranks have few processors. It has no effect without Linux, or if a policy is
    already set.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
