"""Values that pass through code that a recorder may not see: scripts, numpy, hooks, checkpoints."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.networks.maker import NORMS, Block, Maker, width_of
from tests.networks.registry import kind


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@functools.cache
def _scripted(function: Any) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@functools.cache
def _traced() -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(swish, torch.zeros(2, 3, dtype=torch.float64))


class NumpySwish(torch.autograd.Function):
    """x * sigmoid(x), by numpy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        values = x.detach().numpy()
        return torch.from_numpy(values / (1 + np.exp(-values)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class TorchSwish(NumpySwish):
    """The same, by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()


def _beside(m: Maker, function: Callable[[Tensor], Tensor]) -> nn.Module:
    """`norm(y) + function(y)`, or the function alone after a foldable norm."""
    if m.chance(0.3):
        unit, layer = nn.Sequential(*m.pair()), m.conv
        of = width_of(unit[0])
        return Block(lambda self, x: self.out(function(self.unit(x))), unit=unit, out=layer(of=of))
    layer = m.conv()

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + function(y)

    return Block(run, conv=layer, norm=m.norm(layer))


@kind(row=True)
def scripted_function(m: Maker) -> nn.Module:
    function = _traced() if m.chance(0.3) else _scripted(swish)
    return _beside(m, function)


@kind(row=True)
def numpy_function(m: Maker) -> nn.Module:
    return _beside(m, NumpySwish.apply)


@kind()
def custom_function(m: Maker) -> nn.Module:
    return _beside(m, TorchSwish.apply)


@kind()
def detached(m: Maker) -> nn.Module:
    """`x.data` and `x.detach()` share the storage."""
    return _beside(m, (lambda y: y.data * 0.5) if m.chance(0.5) else (lambda y: y.detach().tanh()))


def _from_list(y: Tensor) -> Tensor:
    return torch.tensor(y.tolist(), dtype=y.dtype)


@kind()
def through_python(m: Maker) -> nn.Module:
    """Values leave torch and come back: `tolist`, `item`, `numpy`."""
    style = m.rng.randrange(3)
    if style == 0:
        return _beside(m, lambda y: 0.5 * _from_list(y))
    if style == 1:
        return _beside(m, lambda y: y * 0 + y.mean().item())
    return _beside(m, lambda y: torch.from_numpy(y.detach().numpy() + 1.0))


@kind()
def on_value(m: Maker) -> nn.Module:
    """Control flow that depends on a value."""
    layer = m.conv(6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return z + y if float(y.sum()) > 0 else z - y

    return Block(run, conv=layer, norm=m.norm(layer))


@kind(row=True)
def forward_hook(m: Maker) -> nn.Module:
    """A hook on the convolution or the norm changes its output or input."""
    layer = m.conv()
    norm = m.norm(layer)
    style = m.rng.randrange(5)
    if style == 0:
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    elif style == 1:
        layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    elif style == 2:
        norm.register_forward_hook(lambda module, args, output: output.clamp(-1, 1))
    elif style == 3:
        norm.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    else:
        layer.register_forward_hook(lambda module, args, output: output.relu())
    return nn.Sequential(layer, norm, m.act())


@kind()
def stored_features(m: Maker) -> nn.Module:
    """A hook stores a layer's output for later use, as in feature extraction."""
    layer = m.conv(6)

    def keep(module: Any, args: Any, output: Tensor) -> None:
        module.kept = output

    layer.register_forward_hook(keep)

    def run(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.kept.tanh()

    return Block(run, conv=layer, norm=m.norm(layer))


@kind(chains=1)
def checkpointed(m: Maker) -> nn.Module:
    chain = m.chain()
    reentrant = m.chance(0.3)
    return Block(lambda self, x: checkpoint(self.inner, x, use_reentrant=reentrant, early_stop=False), inner=chain)


@kind()
def scripted_part(m: Maker) -> nn.Module:
    """A part of the network is a TorchScript module."""
    layer = m.conv(kernel_size=1, padding_mode="zeros") if m.dim else m.conv()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        inner = torch.jit.script(nn.Sequential(layer, m.norm(layer, cls=NORMS[m.dim], momentum=0.1), nn.ReLU()))
    return nn.Sequential(*m.pair(m.channels), Block(lambda self, x: self.inner(x), inner=inner))
