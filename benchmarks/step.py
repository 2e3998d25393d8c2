"""A whole ResNet-50 training step with SyncBatchNorm compared with batch normalization, on two ranks."""

import torch

from benchmarks.ddp_step import DDPStep
from benchmarks.ranks import on_ranks
from benchmarks.rows import Row, paired
from syncbn.models.resnet import resnet50

IMAGES = 8
REPEATS = 7


def measure() -> list[Row]:
    """Time steps in turns, under `DistributedDataParallel`."""
    area = f"training step of ResNet-50, {IMAGES} images of 224×224 a rank, 2 ranks of 1 thread"
    return [paired(area, "norm=sync", "norm=batch", "ms", on_ranks(_steps), 1.0)]


def _steps() -> list[tuple[float, float]]:
    nets = [_step(name) for name in ("sync", "batch")]
    images, labels = torch.randn(IMAGES, 3, 224, 224), torch.arange(IMAGES)
    pairs = []
    for repeat in range(-1, REPEATS):  # the first one warms up
        order = nets if repeat % 2 else nets[::-1]
        seconds = {net: net.milliseconds(images, labels) for net in order}
        if repeat >= 0:
            pairs.append((seconds[nets[0]], seconds[nets[1]]))
    return pairs


def _step(norm: str) -> DDPStep:
    torch.manual_seed(0)
    return DDPStep(resnet50(norm))
