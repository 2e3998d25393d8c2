"""Real process groups for tests: persistent gloo processes that run functions of the tests."""

import multiprocessing
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from syncbn.launch.scheduling import let_threads_finish


class Ranks:
    """`world_size` processes in one default gloo group.

    `run(function, *args)` calls an importable function on every rank at once and returns the ranks' results, in order.
    """

    def __init__(self, world_size: int, timeout_s: float = 280) -> None:
        self.world_size = world_size
        self._timeout_s = timeout_s
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        # A file instead of a port, which another test could take in between.
        self._meetings = tempfile.TemporaryDirectory()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_s
        while len(answers) < self.world_size:
            waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            for pipe in wait(waiting, deadline - time.monotonic()):
                ok, answers[waiting[pipe]] = pipe.recv()
                if not ok:
                    self.stop()  # its peers may be waiting for it in a collective
                    raise RuntimeError(f"rank {waiting[pipe]} of {self.world_size}:\n{answers[waiting[pipe]]}")
            if time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(f"ranks {sorted(waiting.values())} did not answer within {self._timeout_s} s")
        return [answers[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        self.stop()
        self._meetings.cleanup()

    def stop(self) -> None:
        """End the processes; the next `run` starts new ones."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = f"{self._meetings.name}/{uuid.uuid4()}"
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.world_size, store), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(pipe: Connection, rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    meeting = dist.FileStore(store, world_size)
    let_threads_finish()
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world_size, timeout=timedelta(seconds=300))
    warnings.simplefilter("error")
    # torch's own imports, and the scripted parts of the tests' models.
    warnings.filterwarnings("ignore", message="`torch.jit.[a-z_]+` is (deprecated|not supported in Python 3.14)")
    warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")
    warnings.filterwarnings("ignore", message="Warning: Profiler clears events")  # torch's own, in Lightning's profiler
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            with warnings.catch_warnings():  # a function's filters end with it
                pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
