"""How the kernel shares processors among the threads of ranks."""

import os


def let_threads_finish() -> None:
    """Give this process, and threads and processes that it starts from now on, Linux's SCHED_BATCH.

    Under it a thread that wakes up doesn't interrupt one that runs. gloo's thread for the network, woken up by a
    message, otherwise interrupts the very thread that holds the connection's lock, and tries the lock in a loop until
    its time slice is over: an all-reduce of 0.1 ms then takes 3 to 4 ms, wherever ranks have few processors. Nothing
    happens without Linux, or where somebody has chosen a policy.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
