"""Single layers, and the usual blocks of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import CONVOLUTIONS, TRANSPOSED, Block, Maker, width_of
from tests.networks.registry import kind


@kind()
def conv(m: Maker) -> nn.Module:
    return m.conv()


@kind()
def norm(m: Maker) -> nn.Module:
    return m.norm()


@kind()
def activation(m: Maker) -> nn.Module:
    return m.act()


@kind()
def prelu(m: Maker) -> nn.Module:
    return nn.PReLU(m.channels)


@kind("123")
def pool(m: Maker) -> nn.Module:
    kinds = {1: (nn.MaxPool1d, nn.AvgPool1d), 2: (nn.MaxPool2d, nn.AvgPool2d), 3: (nn.MaxPool3d, nn.AvgPool3d)}
    stride = 2 if min(m.space) >= 6 else 1
    return m.rng.choice(kinds[m.dim])(3, stride, 1)


@kind("123")
def strided(m: Maker) -> nn.Module:
    stride = 2 if min(m.space) >= 6 else 1
    return m.unit(kernel_size=3, stride=stride, padding=1, padding_mode="zeros")


@kind("123", after=0)
def to_features(m: Maker) -> nn.Module:
    axes = tuple(range(2, 2 + m.dim))
    style = m.rng.randrange(5)
    if style == 0:
        return Block(lambda self, x: x.mean(axes))
    if style == 1:
        adaptive = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[m.dim]
        return nn.Sequential(adaptive(1), nn.Flatten())
    if style == 2:
        return Block(lambda self, x: x.amax(axes).view(x.size(0), -1))
    # Each channel becomes several features.
    flat = {3: nn.Flatten(), 4: Block(lambda self, x: x.reshape(x.size(0), -1))}[style]
    sizes = torch.Size(m.space).numel() * m.channels
    return nn.Sequential(flat, nn.Linear(sizes, m.width()))


@kind("123")
def transposed(m: Maker) -> nn.Module:
    groups = m.rng.choice([1, 1, 2])
    squeeze = m.conv(8, kernel_size=1)
    up = TRANSPOSED[m.dim](8, 4 * groups, 3, padding=1, groups=groups, bias=m.chance(0.5))
    return nn.Sequential(squeeze, up, m.fold(m.norm(up)), m.act())


@kind("123")
def grouped(m: Maker) -> nn.Module:
    """A ResNeXt block's middle."""
    narrow, n1 = m.pair(8, kernel_size=1)
    middle, n2 = m.pair(8, 8, groups=m.rng.choice([2, 4]))
    wide, n3 = m.pair(of=8)
    return nn.Sequential(narrow, n1, m.act(), middle, n2, m.act(), wide, n3)


@kind("123")
def depthwise(m: Maker) -> nn.Module:
    expand, n1 = m.pair(8, kernel_size=1)
    multiplier = m.rng.choice([1, 1, 2])
    each, n2 = m.pair(8 * multiplier, 8, groups=8, bias=False, kernel_size=3)
    project, n3 = m.pair(of=8 * multiplier)
    if n1.affine and n2.affine:  # without β, a channel of zeros isn't one after the second norm
        m.removed(n1, n2)
    return nn.Sequential(expand, n1, nn.ReLU6(), each, n2, nn.ReLU6(), project, n3)


@kind()
def bottleneck(m: Maker) -> nn.Module:
    first = m.unit()
    second, third = m.unit(6, width_of(first[0])), m.pair(m.channels, 6)
    m.removed(first[1], second[1])

    def run(self: Any, x: Tensor) -> Tensor:
        return F.relu(self.out(self.inner(x)) + x)

    return Block(run, inner=nn.Sequential(first, second), out=nn.Sequential(*third))


@kind()
def norm_first(m: Maker) -> nn.Module:
    """Normalize, activate, convolve: nothing to fold."""
    return nn.Sequential(m.norm(), m.act(), m.conv())


@kind()
def norm_twice(m: Maker) -> nn.Module:
    layer, first = m.pair()
    return nn.Sequential(layer, first, m.norm(first.num_features))


@kind()
def norm_without_statistics(m: Maker) -> nn.Module:
    """Evaluated with the batch's own mean and variance."""
    layer = m.conv()
    return nn.Sequential(layer, m.norm(layer, cls=nn.BatchNorm1d if m.dim == 0 else None, track_running_stats=False))


@kind()
def dropout(m: Maker) -> nn.Module:
    drop = {0: nn.Dropout, 1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}[m.dim](0.3)
    layer, norm = m.pair()
    return nn.Sequential(layer, norm, drop, m.act())


@kind("2")
def interpolated(m: Maker) -> nn.Module:
    size = m.rng.choice([4, 8])
    mode = m.rng.choice(["nearest", "bilinear"])
    return Block(lambda self, x: F.interpolate(self.unit(x), size=(size, size), mode=mode), unit=m.unit())


@kind("123")
def padded(m: Maker) -> nn.Module:
    """A pad of zeros or of another constant, and a convolution without one."""
    value = m.rng.choice([0.0, 0.0, 1.0, -2.0])
    pads = [1, 1] * m.dim

    def run(self: Any, x: Tensor) -> Tensor:
        return self.conv(F.pad(self.unit(x), pads, value=value))

    unit = m.unit()
    layer = CONVOLUTIONS[m.dim](unit[0].out_channels, m.width(), 3)
    return Block(run, unit=unit, conv=layer)


@kind()
def separate_linear(m: Maker) -> nn.Module:
    """A 1x1 convolution as a linear layer over the last axis, as in ConvNeXt, with a norm over another axis."""
    layer = nn.Linear(m.channels, m.width())

    def run(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.movedim(1, -1)).movedim(-1, 1))

    return Block(run, linear=layer, norm=m.norm(layer))
