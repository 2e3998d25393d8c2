"""Channels split into parts, which go their own ways."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import Block, Maker
from tests.networks.registry import kind


@kind(source="microsoft/nni#5416")
def simple_gate(m: Maker) -> nn.Module:
    """Half of the channels times the other half (NAFNet), or a GLU."""
    layer, norm = m.pair(8)
    style = m.rng.randrange(3)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if style == 0:
            a, b = y.chunk(2, dim=1)
            return self.out(a * b)
        if style == 1:
            return self.out(F.glu(y, dim=1))
        return self.out(y[:, ::2] * y[:, 1::2].sigmoid())

    return Block(run, conv=layer, norm=norm, out=m.conv(of=4))


@kind(source="tianyic/only_train_once#50")
def split_by_attribute(m: Maker) -> nn.Module:
    """Channels split into parts with sizes read from the following layers."""
    unit = m.unit(8)
    a, b = m.conv(4, 3), m.conv(4, 5)

    def size(layer: Any) -> int:
        return layer.in_channels if hasattr(layer, "in_channels") else layer.in_features

    def run(self: Any, x: Tensor) -> Tensor:
        first, second = torch.split(self.unit(x), [size(self.a), size(self.b)], dim=1)
        return self.a(first) + self.b(second)

    return Block(run, unit=unit, a=a, b=b)


@kind()
def split_stages(m: Maker) -> nn.Module:
    """CSP: one half goes through layers, and both are concatenated again."""
    unit, inner, n = m.unit(8), m.unit(4, 4), m.rng.randrange(3)
    m.removed(unit[1], inner[1])

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        if n == 0:
            a, b = y.split(4, dim=1)
        elif n == 1:
            a, b = y[:, :4], y[:, 4:]
        else:
            a, b = torch.tensor_split(y, 2, dim=1)
        return self.out(torch.cat((a, self.inner(b)), dim=1))

    return Block(run, unit=unit, inner=inner, out=m.conv(of=8))


@kind(source="microsoft/nni#5427")
def hierarchical_splits(m: Maker) -> nn.Module:
    """Res2Net: each part is added to the next before its convolution."""
    unit = m.unit(6)
    layers = nn.ModuleList(nn.Sequential(*m.pair(2, 2), m.act()) for _ in range(2))

    def run(self: Any, x: Tensor) -> Tensor:
        parts = self.unit(x).chunk(3, dim=1)
        done = [parts[0]]
        for layer, part in zip(self.layers, parts[1:], strict=True):
            done.append(layer(part + done[-1]))
        return self.out(torch.cat(done, 1))

    return Block(run, unit=unit, layers=layers, out=m.conv(of=6))


@kind("123")
def ghost(m: Maker) -> nn.Module:
    """GhostNet: features concatenated with cheap ones derived from them, cut to the required number."""
    unit = m.unit(6)
    cheap, norm = m.pair(6, 6, groups=6, kernel_size=3, bias=False)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        return self.out(torch.cat([y, self.norm(self.cheap(y)).relu()], dim=1)[:, :10])

    return Block(run, unit=unit, cheap=cheap, norm=norm, out=m.conv(of=10))


@kind()
def channel_loop(m: Maker) -> nn.Module:
    """A Python loop over the channels."""
    unit, style = m.unit(4), m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        parts = y.unbind(1) if style == 0 else [y[:, c] for c in range(y.shape[1])]
        return self.out(torch.stack([part * (1 + i) for i, part in enumerate(parts)], dim=1))

    return Block(run, unit=unit, out=m.conv(of=4))
