"""Anonymous memory shared by processes of one host, freed with the last process that has it open."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
import stat
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = "/dev/shm"  # always in memory; containers limit its size
_TOKEN = 16  # bytes of a random number that identifies a segment
_HEADER = 128  # bytes before the caller's memory; also the alignment of its counters
_FLOCK = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, process


class Invitation(NamedTuple):
    """Data that a process needs to open another's segment.

    Attributes:
        process: the owner's process id.
        file: the owner's file descriptor.
        size: size in bytes.
        token: first bytes of the segment.
    """

    process: int
    file: int
    size: int
    token: bytes


class Segment:
    """Shared memory, initially zero, in which every participating process holds a lock with its number.

    The file behind it never has a name, so nothing is left over when all processes are killed at any time. A process
    holds its lock until it ends in any way. Process ids wouldn't do: they are reused, and differ between containers.
    """

    def __init__(self, file: int, size: int) -> None:
        """Take over the file descriptor and map `size` bytes."""
        self._file = file
        self._map: mmap.mmap | None = None
        self._map = mmap.mmap(file, size)
        _SEGMENTS.add(self)

    @classmethod
    def create(cls, size: int) -> Segment:
        """Create a segment with `size` bytes for the caller.

        Raises:
            OSError: there is no shared memory, or not enough.
        """
        file = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # Allocate now: with a full /dev/shm, writing to an unallocated page would kill the process by SIGBUS.
            os.posix_fallocate(file, 0, _HEADER + size)
            segment = cls(file, _HEADER + size)
        except OSError as error:
            os.close(file)
            raise OSError(error.errno, f"{error.strerror}, for {size} bytes", FOLDER) from error
        segment.memory[:_TOKEN] = secrets.token_bytes(_TOKEN)
        return segment

    @classmethod
    def open(cls, invitation: Invitation) -> Segment:
        """Open another process's segment.

        Raises:
            OSError: it can't be opened, or doesn't match the invitation.
        """
        path = f"/proc/{invitation.process}/fd/{invitation.file}"
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != invitation.size:
            raise OSError(f"{path} isn't the memory that was meant")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            segment = cls(file, invitation.size)
        except OSError:
            os.close(file)
            raise
        if segment.memory[:_TOKEN] != invitation.token:
            segment.close()
            raise OSError(f"{path} isn't the memory that was meant")
        return segment

    def invitation(self) -> Invitation:
        """Invitation for other processes to open it, while this one has it open."""
        return Invitation(os.getpid(), self._file, len(self.memory), self.memory[:_TOKEN])

    @property
    def memory(self) -> mmap.mmap:
        """The whole memory."""
        assert self._map is not None
        return self._map

    @property
    def address(self) -> int:
        """Address of the caller's part."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + _HEADER

    def lock(self, number: int) -> None:
        """Hold the lock with this number while the process has the segment open."""
        # A lock of the open file. Those of the process are lost when any code closes another descriptor of the file.
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))

    def is_locked(self, number: int) -> bool:
        """Whether another process holds the lock with this number."""
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, number, 1, 0)
        answer = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked)
        return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK

    def close(self, _close: Callable[[int], None] = os.close) -> None:  # by name `os` is None when Python exits
        """Release memory and lock. The address must not be used afterwards."""
        if self._map is not None:
            self._map.close()
            self._map = None
            _close(self._file)

    def __del__(self) -> None:
        self.close()


def host_id() -> str:
    """Id that is equal for processes that can probably open each other's files in /proc, and differs between hosts."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _close_all() -> None:
    """Close all segments in a forked process, so that it keeps neither the memory nor a killed rank's lock."""
    for segment in list(_SEGMENTS):
        segment.close()


_SEGMENTS: weakref.WeakSet[Segment] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_all)
