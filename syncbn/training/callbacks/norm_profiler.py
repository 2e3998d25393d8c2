"""Profile of the norms: named ranges in a profiler's trace, and a table."""

import csv
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.profiler import record_function
from torch.utils.hooks import RemovableHandle

from syncbn.policy.layers import is_norm
from syncbn.training.callbacks.checks_folder import make_folder
from syncbn.training.callbacks.norm_profiler_options import NormProfilerOptions as Options
from syncbn.training.connected import connected
from syncbn.training.norm_times import BACKWARD, FORWARD, NormTime, norm_times, table

FILENAME = "norm_times.csv"


class NormProfiler(L.Callback):
    """Adds a range for each norm's forward and backward pass, and derives compute and communication times.

    The trace is that of `Trainer(profiler=PyTorchProfiler(...))`: by default, steps 3 to 5. Rank 0's table is printed
    at the end of the fit and saved as norm_times.csv. Times are the host's; a GPU is synchronized at both ends of each
    range, so they include the GPU's time, and steps are slower. Communication is the time of collectives that torch
    records, including waiting for other ranks.

    Norms compiled by `torch.compile` aren't measured.

    Args:
        folder: folder for norm_times.csv; the trainer's `default_root_dir` when None.

    Raises:
        MisconfigurationException: at the start of the fit, if the trainer has a different profiler.
    """

    def __init__(self, folder: str | Path | None = Options.folder) -> None:
        self.folder = folder
        self.times: list[NormTime] = []
        self._handles: list[RemovableHandle] = []
        self._open: list[record_function] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the profiler, and make the folder."""
        make_folder(trainer, self.folder)
        profiler = connected(trainer).profiler
        if stage == "fit" and not isinstance(profiler, PyTorchProfiler):
            raise MisconfigurationException(
                "NormProfiler reads the trace of Lightning's PyTorchProfiler: add debug=profiler, or "
                f"Trainer(profiler=PyTorchProfiler(...)), got {type(profiler).__name__}"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Register hooks on the layers."""
        for name, layer in pl_module.named_modules():
            if is_norm(layer):
                # Inside the ranges that Lightning adds to every module.
                self._handles.append(layer.register_forward_pre_hook(partial(self._before, name)))
                self._handles.append(layer.register_forward_hook(partial(self._after, name), prepend=True))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print and save the table."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        profiler = connected(trainer).profiler
        assert isinstance(profiler, PyTorchProfiler)  # `setup` has checked it
        self.times = norm_times(_events(profiler))
        if not self.times:
            rank_zero_warn(
                "there is no trace of a norm in training: the profiler needs 5 training batches, and no validation "
                "among them; a compiled network's norms aren't seen"
            )
        elif trainer.is_global_zero:
            path = Path(self.folder or trainer.default_root_dir, FILENAME)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(NormTime)])
                writer.writeheader()
                writer.writerows(asdict(row) for row in self.times)
            print(f"\n{table(self.times)}\n\ntime of norms: {path}")

    def _before(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        self._enter(FORWARD + name, args)

    def _after(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._exit(output)
        for node in _nodes_between(args, output):
            node.register_prehook(partial(self._enter, BACKWARD + name))
            node.register_hook(lambda grad_inputs, _: self._exit(grad_inputs))

    def _enter(self, name: str, tensors: Any) -> None:
        _wait(tensors)
        self._open.append(record_function(name))
        self._open[-1].__enter__()

    def _exit(self, tensors: Any) -> None:
        _wait(tensors)
        self._open.pop().__exit__(None, None, None)


def _events(profiler: PyTorchProfiler) -> list[Any]:
    trace = profiler.profiler
    assert isinstance(trace, torch.profiler.profile)
    try:
        return list(trace.events())
    except (AssertionError, RuntimeError):  # raised by torch before the end of a schedule
        return []


def _nodes_between(inputs: Any, outputs: Any) -> Iterator[Node]:
    """Autograd nodes between the outputs' gradients and the inputs', without those that produced the inputs."""
    seen = {tensor.grad_fn for tensor in _tensors(inputs)}
    ahead = [tensor.grad_fn for tensor in _tensors(outputs)]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen or node.name().endswith("AccumulateGrad"):
            continue
        seen.add(node)
        yield node
        ahead.extend(following for following, _ in node.next_functions)


def _wait(tensors: Any) -> None:
    if any(tensor.is_cuda for tensor in _tensors(tensors)):
        torch.cuda.synchronize()


def _tensors(values: Any) -> list[Tensor]:
    values = values if isinstance(values, tuple | list) else (values,)
    return [value for value in values if isinstance(value, Tensor)]
