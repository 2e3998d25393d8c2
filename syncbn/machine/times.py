"""Median times of messages and layers on this machine; not meaningful on a busy one."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncbn.machine.report import Timing
from syncbn.norm.core.exchange import exchange_for
from syncbn.norm.sync import SyncBatchNorm

MESSAGES = (64, 2048)  # channels of ResNet-50's narrowest and widest norms
_SHAPES = ((64, 56, 56), (256, 28, 28), (2048, 7, 7))
_CALLS, _REPEATS = 10, 7


def messages(place: str, device: torch.device) -> Iterator[Timing]:
    """Time the sum over all ranks of a layer's 2C + 1 numbers; every rank calls it."""
    group = dist.group.WORLD
    assert group is not None
    ways: dict[str, Callable[[Tensor], object]] = {"all-reduce": partial(dist.all_reduce, group=group)}
    exchange = exchange_for(group, torch.zeros(1, device=device))
    if exchange.name == "one_shot":
        ways["one-shot exchange"] = exchange.sum
    for channels in MESSAGES:
        buffer = torch.zeros(2 * channels + 1, dtype=torch.float64, device=device)
        for name, send in ways.items():
            yield Timing(place, f"{name} of {len(buffer)} numbers", _milliseconds(partial(send, buffer), device))


def layers(place: str, device: torch.device, images: int) -> Iterator[Timing]:
    """Time forward and backward of norms with ResNet-50's shapes; every rank calls it."""
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "syncbn.SyncBatchNorm": SyncBatchNorm,
        "nn.BatchNorm2d, unsynchronized": nn.BatchNorm2d,
    }
    dtype = torch.float32
    if device.type == "cuda":
        kinds["torch.nn.SyncBatchNorm"] = nn.SyncBatchNorm
        dtype = torch.bfloat16
    for shape in _SHAPES:
        x = torch.randn(images, *shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        for name, kind in kinds.items():
            layer = kind(shape[0]).to(device)
            run = partial(_step, layer, x, torch.ones_like(x))
            what = f"{name}, {images} x {' x '.join(map(str, shape))}, channels last"
            yield Timing(place, what, _milliseconds(run, device))


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    torch.autograd.grad(layer(x), (x, *layer.parameters()), dy)


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds per call: the median of several blocks of calls that all ranks start together."""
    run()
    blocks = []
    for _ in range(_REPEATS):
        dist.barrier()
        _wait(device)
        started = time.perf_counter()
        for _ in range(_CALLS):
            run()
        _wait(device)
        blocks.append(1e3 * (time.perf_counter() - started) / _CALLS)
    return statistics.median(blocks)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
