"""Our kernels on a GPU, bf16 and channels last: `SYNCBN_KERNELS=triton python -m benchmarks.gpu`, or `=aten`.

Without a GPU it says so and exits with 2. It fails if a step makes the host wait, or if a CUDA graph can't capture the
kernels.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncFunction

import syncbn
from benchmarks.layers import resnet50_shapes
from benchmarks.rows import Row, counted, markdown, paired
from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.kernels.interface import ChannelAffine

IMAGES = (64, 128, 256)
REPEATS = 15
# Tensors that the kernels must read or write: x; x and y; x and dy; x, dy and dx.
LEAST = 1 + 2 + 2 + 3
# Upper limits of our time relative to a copy (80 % of its bandwidth), torch's SyncBatchNorm, and cuDNN.
COPY_LIMIT, TORCH_LIMIT, UNFUSED_LIMIT = 1.25, 0.667, 1.0


class Accompanied(syncbn.SyncBatchNorm):
    """SyncBatchNorm that sends its messages even in a group of one rank."""

    def communicating_group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD


class TorchAccompanied(nn.SyncBatchNorm):
    """torch's SyncBatchNorm that sends its messages even in a group of one rank, where it is an ordinary batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        return TorchSyncFunction.apply(
            input, self.weight, self.bias, *running, self.eps, self.momentum, dist.group.WORLD, 1
        )


def measure() -> list[Row]:
    """Measure rows for every number of images."""
    with one_rank():
        _check_that_the_host_never_waits()
        return [row for images in IMAGES for row in _rows(images)]


def _rows(images: int) -> list[Row]:
    shapes = resnet50_shapes(images)
    kernels = kernels_for(torch.empty(1, device="cuda")).name
    name = torch.cuda.get_device_name()
    area = f"53 layers of ResNet-50, {images} images, bf16 channels_last, kernels {kernels}, {name}"
    bandwidth = _copy_bandwidth()
    floor = sum(1e3 * LEAST * 2 * torch.Size(shape).numel() / bandwidth for shape in shapes)
    passes = _milliseconds(shapes, {"ours": lambda *case: _captured(partial(_passes, *case))})["ours"]
    alone = _milliseconds(shapes, {"ours": partial(_layer, Accompanied), "torch": partial(_layer, TorchAccompanied)})
    fused = _milliseconds(shapes, {"ours": partial(_block, _fused), "cudnn": partial(_block, nn.BatchNorm2d)})
    largest = max(shapes, key=lambda shape: torch.Size(shape).numel())
    peaks = [_peak(_block(build, *_case(largest))) for build in (_fused, nn.BatchNorm2d)]
    return [
        paired(
            area,
            f"the four passes, in CUDA graphs ({bandwidth / 1e12:.2f} TB/s by the copy)",
            "copying the least",
            "ms",
            [(time, floor) for time in passes],
            COPY_LIMIT,
        ),
        paired(area, "SyncBatchNorm, a group of one rank", "torch.nn.SyncBatchNorm", "ms", _pairs(alone), TORCH_LIMIT),
        paired(area, "SyncBatchNorm + add + ReLU, fused", "cuDNN, unfused", "ms", _pairs(fused), UNFUSED_LIMIT),
        counted(area, "the same, peak memory of the largest layer", "cuDNN, unfused", "MB", *peaks),
    ]


def _pairs(times: dict[str, list[float]]) -> list[tuple[float, float]]:
    return list(zip(*times.values(), strict=True))


def _case(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Make x and dy."""
    x, dy = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    return x.requires_grad_(), dy


def _passes(x: Tensor, dy: Tensor) -> None:
    kernels = kernels_for(x)
    x = x.detach()
    ones = torch.ones(x.shape[1], device=x.device)
    affine = ChannelAffine(ones, ones, 1e-5, ones, ones)
    kernels.moments(x)
    kernels.normalize(x, affine)
    kernels.reduce_grad(dy, x, affine)
    kernels.input_grad(dy, x, affine, ones, ones)


def _layer(build: Callable[[int], nn.Module], x: Tensor, dy: Tensor) -> Callable[[], object]:
    layer = build(x.shape[1]).cuda()
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy)


def _fused(num_features: int) -> nn.Module:
    return syncbn.SyncBatchNorm(num_features, fuse_activation=True)


def _block(build: Callable[[int], nn.Module], x: Tensor, dy: Tensor) -> Callable[[], object]:
    layer = build(x.shape[1]).cuda()
    shortcut = dy.detach().clone().requires_grad_()
    return lambda: torch.autograd.grad(F.relu(layer(x) + shortcut), (x, shortcut, layer.weight, layer.bias), dy)


def _milliseconds(
    shapes: list[tuple[int, ...]], rivals: dict[str, Callable[[Tensor, Tensor], Callable[[], object]]]
) -> dict[str, list[float]]:
    """Milliseconds of each layer for all shapes together, in every repeat. Layers take turns, shape by shape."""
    totals = {name: [0.0] * REPEATS for name in rivals}
    for shape in set(shapes):
        case = _case(shape)
        runs = {name: build(*case) for name, build in rivals.items()}
        for repeat in range(-3, REPEATS):  # the first ones compile and warm up
            for turn in range(len(runs)):
                name = list(runs)[(repeat + turn) % len(runs)]
                elapsed = _time(runs[name])
                if repeat >= 0:
                    totals[name][repeat] += elapsed * shapes.count(shape)
    return totals


def _time(run: Callable[[], object]) -> float:
    """Milliseconds by the GPU's clock, with a cold cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(1 << 28, dtype=torch.uint8, device="cuda").zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _copy_bandwidth() -> float:
    """Bytes per second that a copy of a large tensor reads and writes."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-3 * statistics.median(_time(lambda: target.copy_(source)) for _ in range(9)))


def _peak(run: Callable[[], object]) -> float:
    """Peak memory in MB above what was allocated before."""
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    """Capture `run` in a CUDA graph, and return its replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()  # compiles the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _check_that_the_host_never_waits() -> None:
    case = _case((8, 64, 14, 14))
    steps = [_layer(Accompanied, *case), _block(_fused, *case)]
    for mode in ("default", "error"):  # the first pass compiles
        torch.cuda.set_sync_debug_mode(mode)
        for step in steps:
            step()
    torch.cuda.set_sync_debug_mode("default")


@contextmanager
def one_rank() -> Iterator[None]:
    """NCCL group of one rank."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def main() -> None:
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU, and torch finds none", file=sys.stderr)
        sys.exit(2)
    print(markdown(measure()))


if __name__ == "__main__":
    main()
