"""Time and memory of a CIFAR ResNet-18 training step at batch 2, for every norm, compared with batch normalization."""

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from benchmarks.peers import JacobianBatchNorm, with_jacobians
from benchmarks.rows import Row, counted, paired
from syncbn.models.resnet import resnet18
from syncbn.norm import CrossIterationBatchNorm

BATCH = 2
WARM_UP = 9  # steps that fill the window of cross-iteration BN
REPEATS = 15
# Upper limit of a step with cross-iteration BN relative to one with BN.
LIMITS = {"cross_iteration": 1.2}


def measure() -> list[Row]:
    """Time every registered norm in turns with BN, and cross-iteration BN in turns with its autograd version."""
    torch.set_num_threads(1)
    area = f"training step of the CIFAR ResNet-18, batch {BATCH}, 1 process of 1 thread"
    names = [name for name in syncbn.available_norms() if name != "batch"]
    rows = [
        paired(area, f"norm={name}", "norm=batch", "ms", _in_turns(name, "batch"), LIMITS.get(name)) for name in names
    ]
    ours, peer = "norm=cross_iteration", "cross-iteration BN by autograd"
    rows.append(paired(area, ours, peer, "ms", _in_turns("cross_iteration", peer), 1 / 3))
    states = [_state_megabytes(_after_the_window(name)) for name in ("cross_iteration", peer)]
    return [*rows, counted(area, f"{ours}, state", peer, "MB", *states, limit=1 / 2)]


def _in_turns(name: str, peer: str) -> list[tuple[float, float]]:
    step, other = _step(_net(name)), _step(_net(peer))
    return [(_milliseconds(step), _milliseconds(other)) for _ in range(WARM_UP + REPEATS)][WARM_UP:]


def _net(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name not in syncbn.available_norms():
        return with_jacobians(resnet18("batch", stem="cifar", num_classes=10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return resnet18(name, stem="cifar", num_classes=10)


def _step(net: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def _after_the_window(name: str) -> nn.Module:
    net = _net(name)
    step = _step(net)
    for _ in range(WARM_UP):
        step()
    return net


def _milliseconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _state_megabytes(net: nn.Module) -> float:
    """Size of buffers and of cross-iteration windows."""
    tensors: list[Tensor] = list(net.buffers())
    for module in net.modules():
        if isinstance(module, CrossIterationBatchNorm):
            tensors += [tensor for slot in module.get_extra_state()["slots"] for tensor in slot]
        if isinstance(module, JacobianBatchNorm):
            tensors += [tensor for slot in module.slots for tensor in slot]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
