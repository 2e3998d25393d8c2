"""A compiled training step compared with an eager one and with compiled batch normalization, on two ranks.

The network is the CIFAR ResNet-18 as a whole: `DistributedDataParallel(torch.compile(net, fullgraph=True))`.
"""

import torch
from torch import nn

import syncbn
from benchmarks.ddp_step import DDPStep
from benchmarks.ranks import on_ranks
from benchmarks.rows import Row, paired
from syncbn.models.resnet import resnet18

IMAGES = 32
REPEATS = 11
LIMITS = {"nn.BatchNorm2d, compiled": 1.1}


def measure() -> list[Row]:
    """Time steps in turns; the first ones compile and aren't timed."""
    area = f"training step of the compiled CIFAR ResNet-18, {IMAGES} images of 32×32 a rank, 2 ranks of 1 thread"
    milliseconds = on_ranks(_steps)
    ours = "norm=sync, compiled"
    return [
        paired(area, ours, peer, "ms", list(zip(milliseconds[ours], milliseconds[peer], strict=True)), LIMITS.get(peer))
        for peer in milliseconds
        if peer != ours
    ]


def _steps() -> dict[str, list[float]]:
    steps = {
        "norm=sync, compiled": _step(sync=True, compiled=True),
        "norm=sync, eager": _step(sync=True, compiled=False),
        "nn.BatchNorm2d, compiled": _step(sync=False, compiled=True),
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


def _step(*, sync: bool, compiled: bool) -> DDPStep:
    torch.manual_seed(0)
    net: nn.Module = resnet18(nn.BatchNorm2d, num_classes=10, stem="cifar", width=32)
    if sync:
        net = syncbn.convert(net, "sync")
    return DDPStep(torch.compile(net, fullgraph=True) if compiled else net)
