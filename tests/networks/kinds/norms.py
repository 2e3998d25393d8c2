"""Norms of unusual classes, in unusual places, stored in unusual ways."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import NORMS, Block, Maker, randomized, width_of
from tests.networks.registry import kind


@functools.cache
def _activating(dim: int) -> type[nn.Module]:
    class ActivatingNorm(NORMS[dim]):
        """A batch norm with an activation that only some inputs trigger."""

        def __init__(self, channels: int, activation: Any, **options: Any) -> None:
            super().__init__(channels, **options)
            self.activation = activation

        def forward(self, x: Tensor) -> Tensor:
            return self.activation(super().forward(x))

    return ActivatingNorm


@kind(row=True)
def activating_norm(m: Maker) -> nn.Module:
    layer, style = m.conv(bias=False), m.rng.randrange(3)
    activation = [F.relu, lambda y: y.clamp(-9, 9), lambda y: F.relu6(y + 3) - 3][style]
    norm = _activating(m.dim)(width_of(layer), activation)
    if style == 1 and not m.fresh:
        randomized(norm)
    return nn.Sequential(layer, norm, m.conv(of=width_of(layer)))


@functools.cache
def batch_norm_act(dim: int) -> type[nn.Module]:
    class BatchNormAct2d(NORMS[dim]):
        """As timm's: torch's batch norm, `drop` and `act`."""

        def __init__(self, channels: int, act: nn.Module) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), act

        def forward(self, x: Tensor) -> Tensor:
            y = F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum or 0.0,
                self.eps,
            )
            return self.act(self.drop(y))

    return BatchNormAct2d


@kind(source="huggingface/pytorch-image-models#1254")
def norm_with_act(m: Maker) -> nn.Module:
    layer = m.conv()
    norm = batch_norm_act(m.dim)(width_of(layer), m.act())
    return nn.Sequential(layer, norm if m.fresh else randomized(norm), m.conv(of=width_of(layer)))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: buffers only."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(num_features) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(num_features))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.view(shape) * (self.running_var.view(shape) + self.eps).rsqrt()
        return x * scale + (self.bias.view(shape) - self.running_mean.view(shape) * scale)


@kind("2")
def frozen_norm(m: Maker) -> nn.Module:
    layer = m.conv()
    return nn.Sequential(layer, FrozenBatchNorm2d(width_of(layer)), m.act(), m.conv(of=width_of(layer)))


@kind()
def always_evaluating(m: Maker) -> nn.Module:
    """A norm that refuses to train: its subclass, or the instance, overrides `train`."""
    layer, norm = m.pair()
    if m.chance(0.5):

        class Frozen(type(norm)):
            def train(self, mode: bool = True) -> Any:
                return super().train(False)

        norm.__class__ = Frozen
    norm.requires_grad_(False)
    return nn.Sequential(layer, norm, m.act(), m.conv(of=width_of(layer)))


@kind(source="pytorch/pytorch#122070")
def functional_norm(m: Maker) -> nn.Module:
    """F.batch_norm with the buffers of a norm that is never called, or of the model itself."""
    layer, norm = m.conv(6), NORMS[m.dim](6)
    norm = norm if m.fresh else randomized(norm)

    def run(self: Any, x: Tensor) -> Tensor:
        n = self.norm
        y = F.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps)
        return self.out(y.relu())

    return Block(run, conv=layer, norm=norm, out=m.conv(of=6))


@kind(source="pytorch/pytorch#37823")
def untracked_later(m: Maker) -> nn.Module:
    """Tracking switched off after construction: buffers stay, and evaluation uses them."""
    layer = m.conv()
    norm = m.norm(layer, cls=NORMS[m.dim])
    norm.track_running_stats = False
    return nn.Sequential(layer, norm, m.act())


@kind()
def shared_norm(m: Maker) -> nn.Module:
    """A norm, or a layer, under two names; or one norm for two layers."""
    a, b = m.conv(6), m.conv(6)
    norm = m.norm(6)
    if m.chance(0.5):
        return Block(lambda self, x: self.norm(self.a(x)) + self.norm(self.b(x)).relu(), a=a, b=b, norm=norm)
    return Block(lambda self, x: self.alias(self.a(x)).relu(), a=a, norm=norm, alias=norm, again=a)


@kind()
def aliased_list(m: Maker) -> nn.Module:
    """Registered layers called through a plain list, a dict or a bound method, which still have the old ones."""
    layer = m.conv()
    norm = m.norm(layer)
    style = m.rng.randrange(3)

    def run(self: Any, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    steps = [(layer, norm), ({"f": layer}["f"], norm), (layer, norm.forward)][style]
    block = Block(run, conv=layer, norm=norm)
    block.steps = list(steps)
    return nn.Sequential(block, m.conv(of=width_of(layer)))


@kind()
def hidden_layers(m: Maker) -> nn.Module:
    """Layers in a plain list, invisible to `parameters` and `eval`."""
    unit = m.unit(6)
    layer = m.conv(6, 6)
    hidden = [layer.eval(), m.norm(layer).eval(), nn.ReLU()]

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        for step in self.hidden:
            y = step(y)
        return y

    block = Block(run, unit=unit)
    block.hidden = hidden
    return block


@kind()
def norm_then_linear_parts(m: Maker) -> nn.Module:
    """A norm whose output is read by several layers, one of them through a view."""
    layer, norm = m.pair(6)
    a, b = m.conv(4, 6), m.conv(4, 6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.a(y.relu()) + self.b(y.view_as(y) * 0.5)

    return Block(run, conv=layer, norm=norm, a=a, b=b)


@kind()
def norm_read_by_python(m: Maker) -> nn.Module:
    """The model reads the norm's scale or statistics itself: a sparsity gate, a loss, a rescaling."""
    layer = m.conv(6)
    norm = m.norm(6, affine=True)
    style = m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if style == 0:
            return self.out(y * self.norm.weight.abs().mean())
        return self.out(y + self.norm.running_mean.view(-1, *(1 for _ in x.shape[2:])))

    return Block(run, conv=layer, norm=norm, out=m.conv(of=6))
