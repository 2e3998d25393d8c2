"""Functions on gloo ranks of their own: new processes on this machine's CPU."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Work = Callable[..., dict[str, Any]]


def on_ranks(function: Work, arguments: Sequence[tuple[Any, ...]], timeout_s: float) -> list[dict[str, Any]]:
    """Call a function on as many ranks as there are arguments.

    Args:
        function: an importable function; returns what `torch.load` with `weights_only` reads.
        arguments: each rank's, which can be pickled.
        timeout_s: seconds to wait for the ranks.

    Returns:
        What each rank's call returns.

    Raises:
        ValueError: arguments that can't be sent to another process; a call that fails there.
        TimeoutError: a rank didn't answer.
    """
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        try:
            for rank, given in enumerate(arguments):
                work = _sent((function, given))
                process = context.Process(target=_serve, args=(work, rank, len(arguments), folder), daemon=True)
                process.start()  # raises in a script without `if __name__ == "__main__":`
                processes.append(process)
            _wait(processes, Path(folder), timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [torch.load(path, weights_only=True) for path in _answers(Path(folder), len(arguments))]


def _sent(work: Any) -> bytes:
    try:
        return pickle.dumps(work)
    except Exception as error:
        raise ValueError(
            f"the model, the batch or the loss can't be sent to another process ({error}): define their functions and "
            "classes at the top of a module"
        ) from error


def _serve(work: bytes, rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    try:
        meeting = f"file://{folder}/meeting"  # a file instead of a port, which might be taken
        dist.init_process_group("gloo", meeting, timedelta(minutes=30), world_size, rank)
        function, given = pickle.loads(work)
        torch.save(function(*given), f"{folder}/{rank}.tmp")
        Path(f"{folder}/{rank}.tmp").rename(f"{folder}/{rank}.pt")
    except Exception as error:
        Path(f"{folder}/{rank}.tmp").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        Path(f"{folder}/{rank}.tmp").rename(f"{folder}/{rank}.error")  # atomic: never seen half written
        raise SystemExit(1) from error
    with contextlib.suppress(Exception):  # the answers are there; another rank may be ended first
        dist.barrier()  # no rank leaves while another may still be sending
        dist.destroy_process_group()


def _wait(processes: list[Any], folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(path.exists() for path in _answers(folder, len(processes))):
        ended = any(process.exitcode not in (None, 0) for process in processes)
        if errors := sorted(folder.glob("*.error")):  # after `ended`: a rank writes its reason before it ends
            raise ValueError(f"the step fails on rank {errors[0].stem}: {errors[0].read_text(encoding='utf-8')}")
        if ended:
            raise ValueError(
                'a rank ended before its step; in a script, call verify below `if __name__ == "__main__":`'
            )
        if time.monotonic() > deadline:
            raise TimeoutError(f"the ranks didn't end their step within {timeout_s:g} s: do all run the same layers?")
        time.sleep(0.02)


def _answers(folder: Path, ranks: int) -> Iterator[Path]:
    return (folder / f"{rank}.pt" for rank in range(ranks))
