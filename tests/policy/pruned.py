"""A small network to prune, and the comparison with the original."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.norm.surgery.forward import copied
from tests.policy.strangers import results


class Net(nn.Module):
    """conv, norm, `middle`, conv: 8 channels that are removable if `middle` allows it."""

    def __init__(self, middle: Callable[..., Any] = F.relu, into: int = 8, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.out = nn.Conv2d(into, 4, 3, padding=1)
        self.middle = middle

    def between(self, x: Tensor) -> Tensor:
        return self.middle(x)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.between(self.norm(self.conv(x))))


def norms_of(net: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def check(net: nn.Module, ratio: float, x: Any, probes: list[Any]) -> dict[str, tuple[int, ...]]:
    """Prune, and compare with the original with γ = β = 0, and with lost columns of 0; returns the removed channels."""
    plan = {step.layer: step for step in syncbn.plan_prune(net, ratio, x)}
    state = copy.deepcopy(net.state_dict())
    pruned = syncbn.prune(net, ratio, x)
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
    silent = copied(net)
    for name, norm in norms_of(silent).items():
        gone = list(plan[name].removed) if name in plan else []
        assert name not in plan or pruned.get_submodule(name).num_features == norm.num_features - len(gone)
        for part in (norm.weight, norm.bias):
            if isinstance(part, Tensor):
                part.data[gone] = 0
    for probe in probes:
        torch.testing.assert_close(results(pruned, probe), results(silent, probe), rtol=1e-9, atol=1e-9)
    return {name: step.removed for name, step in plan.items()}
