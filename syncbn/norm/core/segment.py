"""Memory that processes of one host share. It has no name, and ends with the last process that has it."""

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

FOLDER = "/dev/shm"  # memory by definition; containers limit its size
_TOKEN = 16  # bytes of a number that no other segment starts with
_HEADER = 128  # bytes before the memory of the caller, whose counters are aligned to as much
_FLOCK = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, process


class Invitation(NamedTuple):
    """What a process needs to open another's segment.

    Attributes:
        process: the owner's id.
        file: the owner's file descriptor.
        size: bytes.
        token: the first bytes of the segment.
    """

    process: int
    file: int
    size: int
    token: bytes


class Segment:
    """A piece of memory, all zero at first, in which every process that takes part holds a lock on its number.

    The file behind it never has a name, so that nothing is left over when all processes are killed at any moment. A
    process holds its lock until it ends, however it ends; process ids are used again, and differ between containers.
    """

    def __init__(self, file: int, size: int) -> None:
        """Take the file descriptor over, and map `size` bytes."""
        self._file = file
        self._map: mmap.mmap | None = None
        self._map = mmap.mmap(file, size)
        _SEGMENTS.add(self)

    @classmethod
    def create(cls, size: int) -> Segment:
        """A new one, of `size` bytes for the caller.

        Raises:
            OSError: there is no such memory, or not enough.
        """
        file = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # Take the memory now: a write to a page that a full /dev/shm doesn't have would end the process by SIGBUS.
            os.posix_fallocate(file, 0, _HEADER + size)
            segment = cls(file, _HEADER + size)
        except OSError as error:
            os.close(file)
            raise OSError(error.errno, f"{error.strerror}, for {size} bytes", FOLDER) from error
        segment.memory[:_TOKEN] = secrets.token_bytes(_TOKEN)
        return segment

    @classmethod
    def open(cls, invitation: Invitation) -> Segment:
        """Another process's.

        Raises:
            OSError: it can't be opened, or isn't the one of the invitation.
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
        """For the processes that are to open it, while this one has it."""
        return Invitation(os.getpid(), self._file, len(self.memory), self.memory[:_TOKEN])

    @property
    def memory(self) -> mmap.mmap:
        """All of it."""
        assert self._map is not None
        return self._map

    @property
    def address(self) -> int:
        """Where the caller's part of it is."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + _HEADER

    def lock(self, number: int) -> None:
        """Hold the lock of this number as long as the process has the segment."""
        # A lock of the open file, not of the process: those go when any code closes another descriptor of the file.
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))

    def is_locked(self, number: int) -> bool:
        """Whether another process holds the lock of this number."""
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, number, 1, 0)
        answer = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked)
        return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK

    def close(self, _close: Callable[[int], None] = os.close) -> None:  # by name `os` is None when Python exits
        """Give memory and lock back. Nothing may use its address any more."""
        if self._map is not None:
            self._map.close()
            self._map = None
            _close(self._file)

    def __del__(self) -> None:
        self.close()


def host_id() -> str:
    """Equal on processes that can open each other's files in /proc, and different on other hosts; no proof yet."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _close_all() -> None:
    """In a process that was forked, so that it neither keeps the memory nor a killed rank's lock."""
    for segment in list(_SEGMENTS):
        segment.close()


_SEGMENTS: weakref.WeakSet[Segment] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_all)
