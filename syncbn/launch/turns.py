"""Work that the ranks of a node do one after the other, before they have met."""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from syncbn.launch.run_id import VARIABLE
from syncbn.launch.world import current_world


def in_turn(work: Callable[[], object]) -> None:
    """Call `work` on this rank while no other rank of its run on this node does: a download, which the first one makes.

    There is no process group yet, so that a locked file keeps the others waiting. Who holds it removes it; who was
    waiting then finds that the file is gone and makes a new one, so that nothing stays behind.
    """
    if current_world().local_world_size == 1:
        work()
        return
    path = Path(tempfile.gettempdir(), f"syncbn-{os.getuid()}-{os.environ.get(VARIABLE, 'run')}.lock")
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue
            try:
                work()
            finally:
                path.unlink()
            return
