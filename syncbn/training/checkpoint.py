"""Checkpoints that are written atomically and read without running code."""

import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from syncbn.norm.core.messages import first_line
from syncbn.training.plain import with_plain_hyper_parameters


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes to disk and renames; reads only tensors and plain types.

    Lightning writes to the system's temporary folder and moves the file. Between file systems this is a copy, and a job
    killed in the middle leaves half a checkpoint under the final name. Here the old file stays until the new one is
    complete, and longer if `previous_of` names it.

    Args:
        previous_of: names of files whose previous version is kept (last.ckpt as last.previous.ckpt), for disks that
            damage written data.

    Attributes:
        check: called before a file gets its name; raises if the folder isn't this run's any more.
    """

    def __init__(self, previous_of: Sequence[str] = ()) -> None:
        super().__init__()
        self.previous_of = previous_of
        self.check: Callable[[], None] | None = None
        self._told = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the local file `path` atomically.

        Hyper-parameters that are objects, such as networks, are left out: reading them would run code.

        Raises:
            OSError: the disk is full, read-only or broken; the file is unchanged.
            TypeError: it contains other objects, which would make it unreadable.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options has no meaning for a local file, got {storage_options!r}; leave it out")
        checkpoint, left_out = with_plain_hyper_parameters(checkpoint)
        if left_out and not self._told:
            self._told = True
            rank_zero_warn(
                f"{', '.join(left_out)}: these hyper-parameters are objects, and aren't kept in checkpoints, which are "
                "read without running code; save_hyperparameters(ignore=[...]) leaves them out by itself"
            )
        path = Path(path)
        if self.check is not None:
            self.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _check_globals(temporary)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
            if self.check is not None:
                self.check()  # writing may have taken long
            if path.name in self.previous_of and path.exists():
                give_name(path, previous(path))
            os.replace(temporary, path)
        except BaseException as error:
            Path(temporary).unlink(missing_ok=True)
            if disk := _of_the_disk(error):
                before = "the one before it is whole" if path.exists() else "there was none before it"
                raise OSError(disk.errno, f"{disk.strerror}: can't write {str(path)!r}; {before}") from error
            raise
        _sync_folder(path.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, always with `weights_only`."""
        return load_checkpoint(path, map_location)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint as a dict of tensors and plain types; nothing in the file is executed.

    Raises:
        FileNotFoundError: the file doesn't exist.
        ValueError: the file is truncated, damaged or no checkpoint, or contains Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {str(path)!r}; those beside it: {_neighbours(path)}")
    if damage := _damage(path):
        raise ValueError(
            f"{str(path)!r} is truncated, damaged or no checkpoint ({damage}); "
            f"use another, those beside it: {_neighbours(path)}"
        )
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of tensors and plain types, and is not read further "
            f"({first_line(error)}); if it holds Python objects, save its state_dict again with torch.save and load "
            "that"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"the checkpoint {str(path)!r} is damaged ({first_line(error)}); "
            f"use another, those beside it: {_neighbours(path)}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{str(path)!r} holds a {type(checkpoint).__name__}, not the dict of a checkpoint")
    return checkpoint


def _check_globals(path: str) -> None:
    """Raise `TypeError` for an unreadable checkpoint when it is written instead of when it is needed."""
    if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise TypeError(
            f"the checkpoint holds objects that aren't read without running code: {', '.join(sorted(names))}; let "
            "on_save_checkpoint and state_dict return tensors and plain types (float(x) for a number of NumPy's)"
        )


def _of_the_disk(error: BaseException) -> OSError | None:
    """The system's error about the disk, which torch wraps in another one."""
    return next((found for found in (error, error.__context__) if isinstance(found, OSError)), None)


def previous(path: Path) -> Path:
    """Path of a checkpoint's previous version."""
    return path.with_suffix(f".previous{path.suffix}")


def give_name(path: Path, name: Path) -> None:
    """Link a file under a second name, under which it stays when the first is replaced or removed.

    On file systems without hard links, the file is copied.
    """
    link = name.with_name(f".{name.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        shutil.copyfile(path, link)
    os.replace(link, name)


def _damage(path: Path) -> str | None:
    """Find damage by the CRC-32 of each part of the file, which torch writes but doesn't check."""
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except Exception as error:  # damaged tables of the file: zipfile may raise anything
        return first_line(error)
    return f"the checksum of {part} is wrong" if part else None


def _neighbours(path: Path) -> str:
    others = sorted(other.name for other in path.parent.glob("*.ckpt") if other != path)
    return ", ".join(others) or "none"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
