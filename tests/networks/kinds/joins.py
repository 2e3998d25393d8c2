"""Branching and joining paths: sums, concatenations, several heads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import Block, Maker
from tests.networks.registry import kind


def _fitting(m: Maker, before: tuple[int, tuple[int, ...]]) -> nn.Module:
    """A layer that restores the input's channels if the sizes are equal; else a marker."""
    channels, _ = before
    if m.channels == channels:
        return nn.Identity()
    fit = m.conv(channels, kernel_size=1)
    return nn.Sequential(fit, m.fold(m.norm(fit)))


def _resized(y: Tensor, like: Tensor) -> Tensor:
    """Resize features to other features' sizes, by repeating or cropping."""
    return y if y.shape[2:] == like.shape[2:] else F.interpolate(y, size=like.shape[2:])


@kind(chains=1)
def residual(m: Maker) -> nn.Module:
    before = m.channels, m.space
    inner = m.chain()
    fit = _fitting(m, before)
    return Block(lambda self, x: x + _resized(self.fit(self.inner(x)), x), inner=inner, fit=fit)


@kind(chains=2)
def concatenated(m: Maker) -> nn.Module:
    """Two branches side by side, with the input or without."""
    before = m.channels, m.space
    first = m.chain(0)
    m.channels, m.space = before
    second, with_input = m.chain(1), m.chance(0.5)
    m.channels, m.space = before

    def run(self: Any, x: Tensor) -> Tensor:
        parts = [_resized(self.first(x), x), _resized(self.second(x), x)]
        return torch.cat([x, *parts] if with_input else parts, dim=1 if x.dim() != 3 else -2)

    return Block(run, first=first, second=second)


@kind(chains=2)
def branches(m: Maker) -> nn.Module:
    """Two branches, summed after a projection each."""
    before = m.channels, m.space
    first = nn.Sequential(m.chain(0), _fitting(m, before))
    m.channels, m.space = before
    second = nn.Sequential(m.chain(1), _fitting(m, before))
    return Block(
        lambda self, x: _resized(self.first(x), x) - 0.5 * _resized(self.second(x), x), first=first, second=second
    )


@kind(chains=1)
def repeated(m: Maker) -> nn.Module:
    """The same layers called again on their output."""
    before = m.channels, m.space
    with m.repeated():
        inner = nn.Sequential(m.chain(), _fitting(m, before))

    def run(self: Any, x: Tensor) -> Tensor:
        return self.inner(_resized(self.inner(x), x).tanh())

    return Block(run, inner=inner)


@kind(chains=1)
def unused_branch(m: Maker) -> nn.Module:
    """Layers that no forward pass reaches: an auxiliary head."""
    before = m.channels, m.space
    with m.repeated():
        auxiliary = m.chain()
    m.channels, m.space = before
    unit = m.unit()

    def run(self: Any, x: Tensor) -> Tensor:
        return self.unit(x)

    return Block(run, unit=unit, auxiliary=auxiliary)


@kind(chains=1)
def auxiliary_loss(m: Maker) -> nn.Module:
    """Layers whose result is dropped, or stored as an attribute."""
    before = m.channels, m.space
    chain, keep = m.chain(), m.chance(0.5)
    m.channels, m.space = before

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.auxiliary(x)
        if keep:
            self.last = y.detach()
        return self.unit(x)

    return Block(run, unit=m.unit(), auxiliary=chain)


@kind(source="VainF/Torch-Pruning#146")
def concatenated_twice(m: Maker) -> nn.Module:
    """A tensor concatenated with itself."""
    unit = m.unit(4)
    m.removed(unit[1])
    return Block(lambda self, x: self.out(torch.cat([y := self.unit(x), y], 1)), unit=unit, out=m.conv(of=8))


@kind("0", source="VainF/Torch-Pruning#481")
def wide_and_deep(m: Maker) -> nn.Module:
    """A linear layer without a norm, concatenated with layers with one."""
    unit, wide = m.unit(6), nn.Linear(m.channels, 3)
    m.removed(unit[1])
    deep = nn.Sequential(unit, nn.Dropout(0.1))
    return Block(
        lambda self, x: self.out(torch.concat([self.wide(x), self.deep(x)], dim=-1)),
        deep=deep,
        wide=wide,
        out=m.conv(of=9),
    )


@kind("2", source="VainF/Torch-Pruning#147")
def pyramid(m: Maker) -> nn.Module:
    """A U-Net's step down and up, or an SPPF: concatenated pooled maps."""
    unit, mode = m.unit(6), m.rng.randrange(2)
    if mode == 0:
        down = nn.Sequential(*m.pair(8, 6, kernel_size=3, stride=2, padding=1, padding_mode="zeros"), m.act())
        up = nn.ConvTranspose2d(8, 4, 2, stride=2)

        def run(self: Any, x: Tensor) -> Tensor:
            y = self.unit(x)
            low = self.up(self.down(y))
            rows, columns = (s - t for s, t in zip(y.shape[2:], low.shape[2:], strict=True))
            return self.out(torch.cat([F.pad(low, (0, columns, 0, rows)), y], 1))

        return Block(run, unit=unit, down=down, up=up, out=m.conv(of=10))

    def pooled(self: Any, x: Tensor) -> Tensor:
        maps = [self.unit(x)]
        maps.extend(self.pool(maps[-1]) for _ in range(2))
        return self.out(torch.cat(maps, 1))

    return Block(pooled, unit=unit, pool=nn.MaxPool2d(3, 1, 1), out=m.conv(of=18))


@kind("123", source="open-mmlab/mmdetection#6515")
def shared_head(m: Maker) -> nn.Module:
    """A convolution shared by two levels of features, each with its own norm."""
    unit = m.unit(6)
    shared = m.conv(6, 6, padding_mode="zeros", kernel_size=3)
    norms = nn.ModuleList(m.norm(6) for _ in range(2))
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[m.dim]

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        high, low = (
            norm(self.shared(level)).relu() for norm, level in zip(self.norms, (y, pool(y, 3, 1, 1)), strict=True)
        )
        return high + low

    return Block(run, unit=unit, shared=shared, norms=norms)


@kind()
def tuples_and_keywords(m: Maker) -> nn.Module:
    """Parts that take keywords and lists, and return tuples and dicts."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = m.unit(6)

        def forward(self, *, features: list[Tensor], scale: float = 1.0) -> tuple[dict[str, Tensor], None]:
            return {"out": self.unit(features[0]) * scale}, None

    return Block(
        lambda self, x: self.out(self.part(features=[x, x], scale=0.5)[0]["out"]), part=Part(), out=m.conv(of=6)
    )


@kind()
def reparametrizable(m: Maker) -> nn.Module:
    """RepVGG: a 3x3 branch, a 1x1 branch and a norm on the input itself, summed."""
    big, n1 = m.pair(m.channels, kernel_size=3, bias=False)
    small, n2 = m.pair(m.channels, kernel_size=1, bias=False)

    def run(self: Any, x: Tensor) -> Tensor:
        return (self.n1(self.big(x)) + self.n2(self.small(x)) + self.identity(x)).relu()

    return Block(run, big=big, n1=n1, small=small, n2=n2, identity=m.norm())


@kind()
def stacked(m: Maker) -> nn.Module:
    """Branches stacked along a new axis and weighted, as in selective kernels."""
    a, b = m.unit(6), m.unit(6)
    if a[1].affine and b[1].affine:  # a channel goes from both
        m.removed(a[1], b[1])
    return Block(lambda self, x: self.out(torch.stack([self.a(x), self.b(x)]).mean(0)), a=a, b=b, out=m.conv(of=6))


@kind()
def along_other_axes(m: Maker) -> nn.Module:
    """Concatenation along the batch or positions, split again later."""
    unit, layer = m.unit(6), m.conv(6, 6)
    axis = m.rng.choice([0, 0, 2]) if m.dim else 0

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        joined = self.norm(self.conv(torch.cat([y, -y], dim=axis)))
        a, b = joined.chunk(2, dim=axis)
        return a + b.relu()

    return Block(run, unit=unit, conv=layer, norm=m.fold(m.norm(layer)))


@kind(source="VainF/Torch-Pruning#179")
def one_channel(m: Maker) -> nn.Module:
    """A map of one channel, with a norm, that multiplies all of them."""
    unit = m.unit(6)
    layer, norm = m.pair(1, 6)
    return Block(
        lambda self, x: self.out((y := self.unit(x)) * self.norm(self.conv(y)).sigmoid()),
        unit=unit,
        conv=layer,
        norm=norm,
        out=m.conv(of=6),
    )


@kind("123", source="akamaster/pytorch_resnet_cifar10: option A")
def padded_shortcut(m: Maker) -> nn.Module:
    """The shortcut takes every other position, and its missing channels are zeros."""
    stride = 2 if min(m.space) >= 6 else 1
    layer, norm = m.pair(m.channels + 4, kernel_size=3, stride=stride, padding=1, padding_mode="zeros")

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        short = x[(slice(None), slice(None), *(slice(None, None, stride) for _ in x.shape[2:]))]
        return F.relu(y + F.pad(short, [0, 0] * (x.dim() - 2) + [2, 2]))

    return Block(run, conv=layer, norm=norm)


@kind("2")
def unpooled(m: Maker) -> nn.Module:
    """SegNet: unpooling at the places of the largest values."""
    unit, inner = m.unit(6), m.conv(6, 6)

    def run(self: Any, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.unit(x), 2, return_indices=True)
        return F.max_unpool2d(self.inner(y), places, 2, output_size=x.shape[2:])

    return Block(run, unit=unit, inner=inner)
