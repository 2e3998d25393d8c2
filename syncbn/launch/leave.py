"""The end of a rank."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from syncbn.launch.world import World


@contextmanager
def ends_at_once() -> Iterator[None]:
    """The process ends right after its exit functions, with the code it would have had.

    After them Python takes the interpreter and the C++ libraries apart. There the threads of a process group, whose
    peers go away at the same moment, can abort a rank that has finished its work. Enter this before anything registers
    an exit function: the first one registered is called last.
    """
    code = 1  # of an exception that nobody catches
    atexit.register(lambda: _end(code))
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def leave_together(world: World) -> None:
    """Close the process group on all ranks at once: a rank that others leave behind may abort while it exits."""
    if world.world_size == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
