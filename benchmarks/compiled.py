"""A compiled training step beside an eager one, and beside compiled batch normalization, on two ranks.

The network is the CIFAR ResNet-18 as a whole: `DistributedDataParallel(torch.compile(net, fullgraph=True))`.
"""

import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import syncbn
from benchmarks.ranks import on_ranks
from benchmarks.rows import Row, paired
from syncbn.models.resnet import resnet18

IMAGES = 32
REPEATS = 11


def measure() -> list[Row]:
    """Steps in turns; the first ones, which compile, aren't timed."""
    area = f"training step of the compiled CIFAR ResNet-18, {IMAGES} images of 32×32 a rank, 2 ranks of 1 thread"
    milliseconds = on_ranks(_steps)
    ours = "norm=sync, compiled"
    return [
        paired(area, ours, peer, "ms", list(zip(milliseconds[ours], milliseconds[peer], strict=True)))
        for peer in milliseconds
        if peer != ours
    ]


def _steps() -> dict[str, list[float]]:
    steps = {
        "norm=sync, compiled": _Step(sync=True, compiled=True),
        "norm=sync, eager": _Step(sync=True, compiled=False),
        "nn.BatchNorm2d, compiled": _Step(sync=False, compiled=True),
    }
    images, labels = torch.randn(IMAGES, 3, 32, 32), torch.arange(IMAGES) % 10
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-2, REPEATS):
        turn = repeat % len(steps)
        for name in [*list(steps)[turn:], *list(steps)[:turn]]:
            elapsed = steps[name].milliseconds(images, labels)
            if repeat >= 0:
                milliseconds[name].append(elapsed)
    return milliseconds


class _Step:
    def __init__(self, *, sync: bool, compiled: bool) -> None:
        torch.manual_seed(0)
        net: nn.Module = resnet18(nn.BatchNorm2d, num_classes=10, stem="cifar", width=32)
        if sync:
            net = syncbn.convert(net, "sync")
        model = torch.compile(net, fullgraph=True) if compiled else net
        self.net = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def milliseconds(self, images: Tensor, labels: Tensor) -> float:
        dist.barrier()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images), labels).backward()
        self.optimizer.step()
        return 1e3 * (time.perf_counter() - start)
