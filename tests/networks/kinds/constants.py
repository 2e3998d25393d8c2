"""Functions after a norm that aren't 0 at 0, and others that don't keep channels of zeros."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import Block, Maker, width_of
from tests.networks.registry import kind


def _between(m: Maker, function: Any) -> nn.Module:
    """Unit without an activation, the function, and a layer that reads it."""
    layer, norm = m.pair()
    return Block(
        lambda self, x: self.out(function(self.norm(self.conv(x)))),
        conv=layer,
        norm=norm,
        out=m.conv(of=width_of(layer)),
    )


@kind(row=True)
def sigmoid_after_norm(m: Maker) -> nn.Module:
    return _between(m, m.rng.choice([torch.sigmoid, F.hardsigmoid, lambda x: x.sigmoid_()]))


@kind(row=True)
def softplus_after_norm(m: Maker) -> nn.Module:
    return _between(m, m.rng.choice([F.softplus, torch.exp, torch.cos, F.logsigmoid]))


@kind(row=True)
def plus_one(m: Maker) -> nn.Module:
    style = m.rng.randrange(4)
    functions = [lambda x: x + 1, lambda x: (1 - x).relu(), lambda x: F.relu(x).add(0.5), lambda x: x.clamp(min=0.3)]
    return _between(m, functions[style])


@kind("123", row=True)
def depthwise_bias(m: Maker) -> nn.Module:
    """A depthwise convolution with a bias: a channel of zeros becomes the bias."""
    layer, norm = m.pair(6)
    each = m.conv(6, 6, groups=6, bias=True, kernel_size=3)
    after = [m.norm(each)] if m.chance(0.5) else []
    return nn.Sequential(layer, norm, m.act(), each, *after, m.act(), m.conv(of=6))


@kind(row=True)
def preactivated_shortcut(m: Maker) -> nn.Module:
    """`conv(bn(x).relu()) + short(x)`, where no norm follows the sum, or the shortcut reads what the norm does."""
    of = m.width()
    first, short = m.conv(m.channels), m.conv(of, kernel_size=1)
    norm = nn.Sequential(m.norm(first), m.act())
    last, style = m.conv(of, m.channels), m.rng.randrange(5)

    def run(self: Any, x: Tensor) -> Tensor:
        before = self.first(x)
        y = self.last(self.unit(before)) + self.short(before if style > 2 else x)
        return self.out(self.norm(y).relu()) if style == 0 else self.out(y.relu()) if style % 2 else y

    return Block(run, first=first, unit=norm, last=last, short=short, norm=m.norm(of), out=m.conv(of=of))


@kind()
def where(m: Maker) -> nn.Module:
    """A choice between features and a number."""
    return _between(m, lambda x: torch.where(x > 0.2, x, torch.full_like(x, -0.3)))


@kind()
def maximum(m: Maker) -> nn.Module:
    """The larger of two branches."""
    a, b = m.unit(6), m.unit(6)
    return Block(lambda self, x: self.out(torch.maximum(self.a(x), self.b(x))), a=a, b=b, out=m.conv(of=6))


@kind(source="microsoft/nni#5152")
def divided(m: Maker) -> nn.Module:
    """One branch divided by another, which is never 0."""
    a, b = m.unit(6), m.unit(6)
    return Block(lambda self, x: self.out(self.a(x) / (1 + self.b(x).square())), a=a, b=b, out=m.conv(of=6))


@kind(source="microsoft/nni#4540")
def multiplied(m: Maker) -> nn.Module:
    """Two branches multiplied, a gate among them: a channel that is 0 in one of them is 0."""
    a, b = m.unit(6), m.unit(6)
    style = m.rng.randrange(3)

    def run(self: Any, x: Tensor) -> Tensor:
        gate = self.b(x)
        gate = gate if style == 0 else gate.sigmoid() if style == 1 else F.softplus(gate)
        return self.out(self.a(x) * gate)

    return Block(run, a=a, b=b, out=m.conv(of=6))


@kind(source="VainF/Torch-Pruning#328")
def squeeze_excitation(m: Maker) -> nn.Module:
    """A gate from the mean of each channel, by linear layers or 1x1 convolutions, sometimes with a norm inside."""
    layer, norm = m.pair(8)
    m.removed(norm)
    axes = tuple(range(2, 2 + m.dim))
    narrow, wide = nn.Linear(8, 4), nn.Linear(4, 8)
    inner = nn.Sequential(narrow, nn.BatchNorm1d(4), nn.ReLU(), wide) if m.chance(0.4) else None
    gate = inner if inner is not None else nn.Sequential(narrow, nn.ReLU(inplace=True), wide)
    function = m.rng.choice([torch.sigmoid, F.hardsigmoid, torch.tanh])

    def run(self: Any, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.conv(x)))
        scale = function(self.gate(y.mean(axes) if axes else y))
        return self.out(y * scale.view(*scale.shape, *(1 for _ in axes)))

    return Block(run, conv=layer, norm=norm, gate=gate, out=m.conv(of=8))


@kind()
def powers(m: Maker) -> nn.Module:
    """Functions that are 0 at 0, including rare ones."""
    functions = [
        lambda x: x.abs(),
        lambda x: x.square() * 0.3,
        lambda x: torch.sin(x),
        lambda x: F.softsign(x),
        lambda x: F.tanhshrink(x),
        lambda x: F.mish(x),
        lambda x: F.celu(x),
        lambda x: F.softshrink(x),
        lambda x: torch.atan(x),
        lambda x: torch.expm1(x.clamp(max=3)),
        lambda x: -x,
        lambda x: x * 0.5 / 3,
        lambda x: F.hardtanh(x, -0.5, 2),
    ]
    return _between(m, m.rng.choice(functions))
