"""One training step of the CIFAR ResNet-18 at batch 2, for every norm beside batch normalization, and what it keeps."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.models.resnet import resnet18
from syncbn.norm import CrossIterationBatchNorm

BATCH = 2
WARM_UP = 9  # as many steps as fill the window of cross-iteration BN
REPEATS = 15


@dataclass
class Cost:
    """Of a whole network of one norm: step time beside batch normalization's, and bytes that aren't parameters."""

    norm: str
    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]
    state: int


def measure() -> list[Cost]:
    """Every norm of the registry, each in turns with batch normalization; one process, one thread."""
    torch.set_num_threads(1)
    names = [name for name in syncbn.available_norms() if name != "batch"]
    return [_cost(name) for name in ("batch", *names)]


def _cost(name: str) -> Cost:
    baseline, _ = _step("batch")
    step, net = _step(name)
    pairs = [(_seconds(step), _seconds(baseline)) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    low, middle, high = statistics.quantiles([ours / theirs for ours, theirs in pairs], n=4)
    return Cost(name, 1e3 * statistics.median(ours for ours, _ in pairs), middle, (low, high), state_bytes(net))


def _step(name: str) -> tuple[Callable[[], None], nn.Module]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = resnet18(name, stem="cifar", num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step, net


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def state_bytes(net: nn.Module) -> int:
    """Buffers, and the windows of cross-iteration norms."""
    tensors: list[Tensor] = list(net.buffers())
    for module in net.modules():
        if isinstance(module, CrossIterationBatchNorm):
            tensors += [tensor for slot in module.get_extra_state()["slots"] for tensor in slot]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
