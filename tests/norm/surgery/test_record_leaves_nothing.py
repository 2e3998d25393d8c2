"""A recorded pass has no side effects: no state, hook, mode or generator changes."""

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from syncbn.norm.surgery.forward import copied, run, tensors_in
from syncbn.norm.surgery.graph import Graph
from syncbn.norm.surgery.record import record
from tests.norm.surgery.passes import CONSTANT, Named, Net, Result, X, makers


class Restless(Net):
    """A module that changes parameters, buffers, attributes, its input and random generators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.cache: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache.append(x)
        x -= 1
        self.conv.weight.mul_(1.1)
        CONSTANT.add_(1)
        return super().forward(x) + torch.rand(()) + np.random.rand()  # noqa: NPY002 (what people call)


def test_a_pass_leaves_everything_as_it_was() -> None:
    net, x = Restless(), X.clone()
    state, modes, hooks = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], hooks_of(net)
    random = torch.get_rng_state(), np.random.get_state()[1].tolist(), CONSTANT.clone()  # noqa: NPY002
    record(net, x)
    for before, after in zip(state.values(), net.state_dict().values(), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(x, X)
    assert net.cache == []
    assert [m.training for m in net.modules()] == modes
    assert hooks_of(net) == hooks
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]  # noqa: NPY002
    assert torch.equal(CONSTANT, random[2])


def hooks_of(net: nn.Module) -> list[Any]:
    return [
        *(dict(getattr(m, name)) for m in net.modules() for name in vars(m) if name.endswith("_hooks")),
        nn.modules.module._has_any_global_hook(),
    ]


def test_a_model_that_raises_leaves_the_beginning_and_no_hook() -> None:
    class Raises(Restless):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return self.conv(torch.randn(1, 1, 2, 2))

    net, begun = Raises(), Graph()
    state, hooks = copy.deepcopy(net.state_dict()), hooks_of(net)
    with pytest.raises(RuntimeError, match="channels"):
        record(net, X, graph=begun)
    assert [op.kind for op in begun.operations if not op.outputs] == ["convolution"]
    assert hooks_of(net) == hooks
    for before, after in zip(state.values(), net.state_dict().values(), strict=True):
        assert torch.equal(before, after)


def test_a_model_that_cannot_be_copied_is_run_itself() -> None:
    net = Net()
    net.lock = threading.Lock()
    net.train()
    assert makers(record(net, X)) == ["convolution"]
    assert net.training


def test_modules_of_another_thread_are_not_this_passs() -> None:
    other, started, stop = nn.ReLU(), threading.Event(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            other(X)
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        graph = record(nn.Sequential(*(nn.Tanh() for _ in range(50))), X)
    finally:
        stop.set()
        thread.join()
    assert len(graph.calls) == 51
    assert not graph.calls_of(other)


def test_a_copy_of_what_deepcopy_refuses() -> None:
    net = Net()
    spectral_norm(net.conv)
    net(X)
    with pytest.raises(RuntimeError):
        copy.deepcopy(net)
    clone = copied(net).eval()
    assert torch.equal(clone(X), net.eval()(X))
    clone.conv.weight_orig.data.zero_()
    assert net.conv.weight_orig.abs().sum() > 0


def test_arguments_of_a_model() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return x * scale

    assert torch.equal(run(Two(), X), X)
    assert torch.equal(run(Two(), (X, 2.0)), 2 * X)
    assert torch.equal(run(Two(), {"x": X, "scale": 3.0}), 3 * X)
    assert torch.equal(run(Two(), {"image": X}, lambda model, batch: model(batch["image"], 4.0)), 4 * X)
    assert len(list(tensors_in({"a": [X, X + 1, (X,)], "b": Result(X + 2, Named(c=X + 3))}))) == 4
