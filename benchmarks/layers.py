"""Forward and backward of every normalization layer of a ResNet-50, two gloo ranks on CPU, one thread each."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

import syncbn
from benchmarks.peers import AllGatherBatchNorm
from syncbn.models.resnet import resnet50

IMAGES = 8
REPEATS = 15
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "syncbn.SyncBatchNorm": syncbn.SyncBatchNorm,
    "nn.BatchNorm2d, unsynchronized": nn.BatchNorm2d,
    "all-gather and autograd": AllGatherBatchNorm,
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Timing:
    """`seconds[layer][i][r]`: the i-th of the 53 shapes in repeat r; the layers of a repeat ran one after another."""

    memory_format: str
    seconds: dict[str, list[list[float]]]

    def total(self, layer: str) -> float:
        """Seconds for all shapes, each the median of its repeats: a stall of the scheduler is not the layer's."""
        return sum(statistics.median(repeats) for repeats in self.seconds[layer])

    def ratio(self, layer: str, peer: str) -> float:
        return self.total(layer) / self.total(peer)

    def spread(self, layer: str, peer: str) -> tuple[float, float]:
        """Quartiles of the ratios of single repeats, stalls included."""
        totals = ([sum(shape[r] for shape in self.seconds[name]) for r in range(REPEATS)] for name in (layer, peer))
        ratios = [a / b for a, b in zip(*totals, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        return low, high


def resnet50_shapes(images: int = IMAGES) -> list[tuple[int, ...]]:
    """Input shapes of ResNet-50's 53 normalization layers for images of 224 by 224 pixels."""
    shapes: list[tuple[int, ...]] = []
    with torch.device("meta"):
        model = resnet50()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
        model(torch.empty(images, 3, 224, 224))
    return shapes


def measure() -> list[Timing]:
    """Time every layer in both memory formats, in two processes; rank 0's figures."""

    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, f"{folder}/store", answers), daemon=True) for rank in range(2)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a rank of the benchmark ended with exit code {process.exitcode}")
        return answers.get()


def _rank(rank: int, store: str, answers: "multiprocessing.SimpleQueue[list[Timing]]") -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    timings = [_time_format(name) for name in FORMATS]
    if rank == 0:
        answers.put(timings)
    dist.destroy_process_group()


def _time_format(memory_format: str) -> Timing:
    shapes = resnet50_shapes()
    tensors = _tensors(set(shapes), memory_format)
    layers = {name: [build(shape[1]) for shape in shapes] for name, build in LAYERS.items()}
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in shapes] for name in LAYERS}
    for repeat in range(-1, REPEATS):  # the first one warms up
        for i, shape in enumerate(shapes):
            for turn in range(len(LAYERS)):
                name = list(LAYERS)[(repeat + i + turn) % len(LAYERS)]  # another order each time
                elapsed = _forward_and_backward(layers[name][i], *tensors[shape])
                if repeat >= 0:
                    seconds[name][i].append(elapsed)
    return Timing(memory_format, seconds)


def _forward_and_backward(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    dist.barrier()
    start = time.perf_counter()
    torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy)
    return time.perf_counter() - start


def _tensors(shapes: set[tuple[int, ...]], memory_format: str) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
    def tensor(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape).contiguous(memory_format=FORMATS[memory_format])

    return {shape: (tensor(shape).requires_grad_(), tensor(shape)) for shape in shapes}
