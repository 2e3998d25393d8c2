"""A backward pass of an evaluation goes by the statistics of its forward pass, whatever has become of them since."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm.core.tracking import TrackingNorm
from tests.norm.test_every_norm import build, gradients, images, loss_of, trained


def train_once(model: nn.Module) -> None:
    model.train()(images(9))


def write(model: nn.Module) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.detach().mul_(3).add_(1)


def load(model: nn.Module) -> None:
    model.load_state_dict(
        {key: value * 2 for key, value in model.state_dict().items() if torch.is_tensor(value)}, False
    )


def recalibrate(model: nn.Module) -> None:
    syncbn.recalibrate(model, [images(9)])


def freeze(model: nn.Module) -> None:
    syncbn.freeze(model).train()(images(9))


def evaluate(model: nn.Module, x: Tensor, between: Callable[[Any], None] | None) -> tuple[Tensor, dict[str, Any]]:
    x = x.clone().requires_grad_()
    loss = loss_of(model.eval()(x))
    if between is not None:
        between(model)
    loss.backward()
    assert x.grad is not None
    return x.grad, gradients(model)


STATISTICS = [name for name in syncbn.available_norms() if isinstance(build(name)[1], TrackingNorm)]
CASES = [
    *[(name, train_once) for name in syncbn.available_norms()],
    *[(name, write) for name in STATISTICS if name != "frozen"],  # γ is a buffer there, and a write to γ is refused
    *[(name, policy) for name in STATISTICS for policy in (recalibrate, freeze) if name != "recurrent"],
]
REFUSED = [("decorrelated", recalibrate), ("frozen", recalibrate)]


@pytest.mark.parametrize(("name", "between"), [case for case in CASES if case not in REFUSED])
def test_what_moves_the_statistics_in_between_changes_no_gradient(
    name: str, between: Callable[[nn.Module], None]
) -> None:
    model = trained(name)
    expected = evaluate(copy.deepcopy(model), images(5), None)
    torch.testing.assert_close(evaluate(model, images(5), between), expected, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["evaluation first", "training first"])
def test_both_modes_in_one_loss(order: str) -> None:
    """Against the two losses one by one, in float64, by torch's layer."""
    x = torch.randn(5, 4, dtype=torch.float64)
    layer = syncbn.SyncBatchNorm(4).double()
    layer(torch.randn(9, 4).double() * 2)
    peer = nn.BatchNorm1d(4).double()
    peer.load_state_dict(layer.state_dict())

    modes = [False, True] if order == "evaluation first" else [True, False]
    total, expected = torch.zeros((), dtype=torch.float64), torch.zeros_like(x)
    leaf = x.clone().requires_grad_()
    for training in modes:
        total = total + layer.train(training)(leaf).pow(3).sum()
        one = x.clone().requires_grad_()
        peer.train(training)(one).pow(3).sum().backward()
        expected += one.grad
    total.backward()
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("name", ["sync", "adaptive", "decorrelated", "switchable", "ghost"])
def test_in_a_compiled_graph_too(name: str) -> None:
    torch.compiler.reset()
    model = trained(name).eval()
    expected = evaluate(copy.deepcopy(model), images(5), None)
    compiled: Any = torch.compile(model, backend="aot_eager")
    x = images(5).clone().requires_grad_()
    loss = loss_of(compiled(x))
    write(model)
    loss.backward()
    torch.testing.assert_close((x.grad, gradients(model)), expected, rtol=1e-4, atol=1e-5)


def test_an_exported_evaluation_copies_nothing() -> None:
    program = torch.export.export(trained("sync").eval(), (images(0),), strict=False)
    assert "clone" not in str(program.graph)
    assert "syncbn" not in str(program.graph)
