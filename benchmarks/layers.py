"""Forward and backward of all normalization layers of a ResNet-50, on two gloo CPU ranks of one thread each."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import syncbn
from benchmarks.peers import AllGatherBatchNorm, copy_least
from benchmarks.ranks import on_ranks, start_together
from benchmarks.rows import Row, paired
from syncbn.models.resnet import resnet50

IMAGES = 8
REPEATS = 15
OURS, BATCH, GATHER, FLOOR = (
    "SyncBatchNorm, forward and backward",
    "nn.BatchNorm2d, unsynchronized",
    "all-gather and autograd",
    "copying the least",
)
# Upper limits of our time relative to a peer's, by peer and memory format.
LIMITS = {
    (BATCH, "contiguous"): 0.8,
    (BATCH, "channels_last"): 1.1,
    (GATHER, "contiguous"): 1 / 4.5,
    (GATHER, "channels_last"): 1 / 7,
    (FLOOR, "contiguous"): 1.6,
    (FLOOR, "channels_last"): 1.8,
}
ALONE = {"contiguous": 1.5, "channels_last": 2.0}  # of each shape, relative to batch normalization
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def measure() -> list[Row]:
    """Compare SyncBatchNorm with each peer over the 53 layers, in both memory formats."""
    return [row for name in FORMATS for row in _rows(name, on_ranks(_time_format, name))]


def _rows(memory_format: str, seconds: dict[str, list[list[float]]]) -> list[Row]:
    """Rows from `seconds[layer][r][i]`, the time of shape i of 53 in repeat r; the layers take turns in a repeat."""
    totals = {layer: [1e3 * sum(shapes) for shapes in repeats] for layer, repeats in seconds.items()}
    area = f"53 layers of ResNet-50, {IMAGES} images a rank, 2 ranks of 1 thread, {memory_format}"
    rows = [
        paired(area, OURS, peer, "ms", list(zip(totals[OURS], totals[peer], strict=True)), LIMITS[peer, memory_format])
        for peer in (BATCH, GATHER, FLOOR)
    ]
    shapes = resnet50_shapes()
    for shape in sorted(set(shapes), key=shapes.index):

        def of_shape(times: list[float], shape: tuple[int, ...] = shape) -> float:
            return 1e3 * statistics.fmean(time for time, its in zip(times, shapes, strict=True) if its == shape)

        pairs = [(of_shape(ours), of_shape(theirs)) for ours, theirs in zip(seconds[OURS], seconds[BATCH], strict=True)]
        area, what = f"its shapes one by one, {memory_format}", " × ".join(map(str, shape))
        rows.append(paired(area, what, BATCH, "ms", pairs, ALONE[memory_format]))
    return rows


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


def _time_format(memory_format: str) -> dict[str, list[list[float]]]:
    shapes = resnet50_shapes()
    tensors = {shape: [_random(shape, memory_format) for _ in range(4)] for shape in set(shapes)}
    layers: dict[str, Callable[[int], nn.Module]] = {
        OURS: syncbn.SyncBatchNorm,
        BATCH: nn.BatchNorm2d,
        GATHER: AllGatherBatchNorm,
    }
    runs: list[dict[str, Callable[[], object]]] = []
    for shape in shapes:
        x, dy, *targets = tensors[shape]
        run = {name: partial(_forward_and_backward, build(shape[1]), x, dy) for name, build in layers.items()}
        runs.append({**run, FLOOR: partial(copy_least, x, dy, *targets)})
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs[0]}
    for repeat in range(-1, REPEATS):  # the first one warms up
        elapsed: dict[str, list[float]] = {name: [] for name in seconds}
        for i, run in enumerate(runs):
            for turn in range(len(run)):
                name = list(run)[(repeat + i + turn) % len(run)]  # a different order each time
                elapsed[name].append(_time(run[name]))
        if repeat >= 0:
            for name, times in elapsed.items():
                seconds[name].append(times)
    return seconds


def _time(run: Callable[[], object]) -> float:
    start_together()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _forward_and_backward(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    x = x.detach().requires_grad_()
    torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy)


def _random(shape: tuple[int, ...], memory_format: str) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=FORMATS[memory_format])
