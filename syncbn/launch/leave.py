"""Exit of a rank."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from syncbn.launch.faults import note_end, note_failure, note_start
from syncbn.launch.stop import Stopped
from syncbn.launch.world import World


@contextmanager
def ends_at_once() -> Iterator[None]:
    """End the process right after its exit functions, with the same exit code.

    After them Python would finalize the interpreter and the C++ libraries. Then the threads of a process group, whose
    peers exit at the same time, can abort a rank that has finished its work. Enter this before anything registers an
    exit function: the first one registered is called last.
    """
    code = 1  # for an uncaught exception
    atexit.register(lambda: _end(code))
    note_start()
    try:
        yield
        code = 0
    except SystemExit as end:
        code = exit_code(end)
        if code and not isinstance(end, Stopped):
            note_failure()
        raise
    except BaseException:
        note_failure()
        raise


def exit_code(end: SystemExit) -> int:
    """The code that Python exits with: a message's is 1."""
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def leave_together(world: World) -> None:
    """Close the process group on all ranks at once: a rank whose peers have exited may abort."""
    if world.world_size == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _end(code: int) -> None:
    note_end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
