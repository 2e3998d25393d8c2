"""Real ranks that may hang, be killed or exit: new processes for each case, with their output."""

import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# The slow imports are done once: each rank is a fork of an idle process.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.training.fits"])


@dataclass(frozen=True)
class Ended:
    """End of a rank: its exit code, such as -9 after kill -9, and its output."""

    code: int | None
    output: str


class LostRanks:
    """`world_size` processes in one gloo group that run an importable function; `end` returns how they ended."""

    def __init__(self, world_size: int, function: Callable[..., Any], *args: Any, group_timeout_s: float = 200) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, str(rank)) for rank in range(world_size)]
        self.processes = [
            _CONTEXT.Process(
                target=_run,
                args=(rank, world_size, self.store.port, group_timeout_s, str(output), function, args),
            )
            for rank, output in enumerate(self._outputs)
        ]
        for process in self.processes:
            process.start()

    def wait_for(self, text: str, timeout_s: float = 200) -> None:
        """Wait until a rank has printed `text`."""
        deadline = time.monotonic() + timeout_s
        while not any(output.exists() and text in output.read_text() for output in self._outputs):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no rank has printed {text!r} within {timeout_s} s: {self.end(0)}")
            time.sleep(0.05)

    def end(self, timeout_s: float = 200, stopped: int | None = None) -> list[Ended]:
        """Wait for all ranks except one that was stopped, which is killed, as by a launcher."""
        deadline = time.monotonic() + timeout_s
        for rank, process in enumerate(self.processes):
            if rank != stopped:
                process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.join()
        ends = [Ended(code, output.read_text()) for code, output in zip(codes, self._outputs, strict=True)]
        self._folder.cleanup()
        return ends


def _run(
    rank: int,
    world_size: int,
    port: int,
    timeout_s: float,
    output: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    # Only now: gloo of torch 2.8 prints which ranks it is connected to.
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*args)
    dist.barrier()
    os._exit(0)  # as `syncbn.launch.leave` does
