"""Tensors that are written in place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import Block, Maker, width_of
from tests.networks.registry import kind


@kind(row=True)
def inplace_activation(m: Maker) -> nn.Module:
    """An in-place activation, as in all torchvision networks."""
    return nn.Sequential(*m.pair(), m.act(inplace=True))


@kind(row=True)
def inplace_add(m: Maker) -> nn.Module:
    """A residual block with `out += x`."""
    layer, norm = m.pair(m.channels)
    if m.chance(0.5):
        wide, wide_norm = m.pair(m.channels, kernel_size=1)
        short: nn.Module = nn.Sequential(wide, wide_norm)
    else:
        short = nn.Identity()

    def run(self: Any, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += self.short(x)
        return self.relu(out)

    return Block(run, conv=layer, norm=norm, short=short, relu=nn.ReLU(inplace=True))


@kind(row=True)
def growing_list(m: Maker) -> nn.Module:
    """DenseNet: a list that is concatenated and then grows."""
    growth, of = 4, m.channels
    layers = nn.ModuleList()
    for _ in range(2):
        first, second = m.pair(6, of, kernel_size=1)
        layers.append(nn.Sequential(m.norm(of), nn.ReLU(inplace=True), first, second, m.act(), m.conv(growth, 6)))
        of += growth

    def run(self: Any, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)

    return Block(run, layers=layers)


@kind("123", row=True)
def written_slice(m: Maker) -> nn.Module:
    """Part of a convolution's output is overwritten before the norm reads it."""
    layer = m.conv()
    style = m.rng.randrange(4)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        if style == 0:
            y[:, :, 0] = 0
        elif style == 1:
            y[:, :2] = 1
        elif style == 2:
            y[:, 1].mul_(2)
        else:
            y.narrow(2, 0, 1).copy_(y.narrow(2, 1, 1).clone())
        return self.norm(y)

    return Block(run, conv=layer, norm=m.norm(layer))


@kind(row=True)
def assembled(m: Maker) -> nn.Module:
    """An output that is allocated first, and written in parts by layers."""
    a, b = m.unit(4), m.unit(2)
    spare = m.rng.choice([0, 2])  # channels that stay 0

    def run(self: Any, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 6 + spare, *x.shape[2:])
        y[:, :4] = self.a(x)
        y[:, 4:6] = self.b(x)
        return self.out(y)

    return Block(run, a=a, b=b, out=m.conv(of=6 + spare))


@kind()
def overwritten_shortcut(m: Maker) -> nn.Module:
    """The activation of the branch overwrites what the shortcut adds."""
    layer, norm = m.pair()
    of = width_of(layer)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.branch(F.relu_(y)) + y

    return Block(run, conv=layer, norm=norm, branch=m.conv(of, of))


@kind()
def written_after_norm(m: Maker) -> nn.Module:
    """A norm's output is changed in place: all of it, or some channels."""
    layer, norm = m.pair()
    style = m.rng.randrange(4)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if style == 0:
            y[:, :2].relu_()
        elif style == 1:
            y[:, 0] = 1
        elif style == 2:
            y.add_(1)
        else:
            y.masked_fill_(y < 0, -0.1)
        return self.out(y)

    return Block(run, conv=layer, norm=norm, out=m.conv(of=width_of(layer)))


@kind()
def given_output(m: Maker) -> nn.Module:
    """A result written into an existing tensor (`out=`, `copy_`)."""
    a, b = m.unit(6), m.conv(6)
    style = m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        if style == 0 and not torch.is_grad_enabled():
            target = torch.empty_like(y)
            torch.add(y, z, out=target)
        else:
            target = torch.zeros_like(y)
            target.copy_(y)
            target.add_(z)
        return self.norm(target)

    return Block(run, a=a, b=b, norm=m.norm(6))


@kind()
def indexed_writes(m: Maker) -> nn.Module:
    """Channels are added by index, as scatter and index_add do."""
    a, b = m.unit(6), m.conv(3)

    def run(self: Any, x: Tensor) -> Tensor:
        return self.a(x).index_add(1, torch.tensor([4, 0, 2]), self.b(x))

    return Block(run, a=a, b=b)


@kind()
def written_view(m: Maker) -> nn.Module:
    """A view made before a write of the tensor, and read after it."""
    layer = m.conv(6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        view = y.flatten(2) if y.dim() > 2 else y.view(-1, 6)
        y.mul_(2)
        return self.norm(y) + view.sum() / view.numel()

    return Block(run, conv=layer, norm=m.norm(layer))


@kind()
def accumulated(m: Maker) -> nn.Module:
    """A sum over branches that starts from the number 0, or from zeros."""
    branches = nn.ModuleList(m.unit(6) for _ in range(3))
    style = m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        total: Any = 0 if style == 0 else x.new_zeros(1, 6, *(1 for _ in x.shape[2:]))
        for branch in self.branches:
            total = total + branch(x)
        return total

    return Block(run, branches=branches)
