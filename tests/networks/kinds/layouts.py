"""Channels that move: pools, views and permutations in unusual layouts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import CONVOLUTIONS, Block, Maker
from tests.networks.registry import kind


@kind("01", row=True)
def pool_over_channels(m: Maker) -> nn.Module:
    """A pool with one dimension too many treats the channels as positions."""
    unit = m.unit(6)
    if m.dim == 0:
        pool: nn.Module = m.rng.choice([nn.AvgPool1d, nn.MaxPool1d])(3, 1, 1)
    else:
        pool = m.rng.choice([nn.AvgPool2d, nn.MaxPool2d])(3, 1, 1)
    return nn.Sequential(unit, pool, m.conv(of=6))


@kind("12")
def norm_over_rows(m: Maker) -> nn.Module:
    """Features are seen as (N·H, C, W) or (N, H·C) by the norm."""
    layer = m.conv(6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.dim() == 3:
            return self.norm(y.transpose(1, 2).reshape(-1, 6)).view(len(y), -1, 6).transpose(1, 2)
        rows = y.permute(0, 2, 1, 3).flatten(0, 1)
        return self.norm(rows).unflatten(0, (len(y), -1)).transpose(1, 2)

    return Block(run, conv=layer, norm=m.norm(6, cls=nn.BatchNorm1d))


@kind("123")
def flattened_positions(m: Maker) -> nn.Module:
    """(N, C, H, W) seen as (N, C, HW), and back."""
    unit, inner = m.unit(6), CONVOLUTIONS[1](6, 6, 1)
    norm = m.norm(6, cls=nn.BatchNorm1d)
    style = m.rng.randrange(3)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        flat = (
            y.flatten(2) if style == 0 else y.view(y.size(0), y.size(1), -1) if style == 1 else y.reshape(len(y), 6, -1)
        )
        return self.norm(self.inner(flat)).view(y.shape)

    return Block(run, unit=unit, inner=inner, norm=m.fold(norm))


@kind("123", source="ZJU-lishuang/yolov5_prune#22")
def hard_coded_view(m: Maker) -> nn.Module:
    """A view with the number of channels written into the code."""
    unit = m.unit(8)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        return self.out(y.view(y.size(0), 2, 4, *y.shape[2:]).sum(1))

    return Block(run, unit=unit, out=m.conv(of=4))


@kind("0", source="VainF/Torch-Pruning#125")
def features_to_map(m: Maker) -> nn.Module:
    """A generator's start: features viewed as a map with the next layer's number of input channels."""
    unit, up = m.unit(16), nn.ConvTranspose2d(4, 6, 2, stride=2)
    norm = m.norm(6, cls=nn.BatchNorm2d)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x).view(-1, self.up.in_channels, 2, 2)
        return self.norm(self.up(y)).relu().amax((2, 3))

    return Block(run, unit=unit, up=up, norm=m.fold(norm))


@kind("2", source="VainF/Torch-Pruning#420")
def pixel_shuffle(m: Maker) -> nn.Module:
    layer, norm = m.pair(8)
    style = m.rng.randrange(2)
    if style == 0:
        return nn.Sequential(layer, norm, nn.PixelShuffle(2), nn.ReLU(), nn.AvgPool2d(2), m.conv(of=2))
    return nn.Sequential(layer, norm, nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2), m.conv(of=32))


@kind("123")
def channel_shuffle(m: Maker) -> nn.Module:
    unit, style = m.unit(8), m.rng.randrange(3)
    each = m.conv(8, 8, groups=2)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        if style == 0:
            y = F.channel_shuffle(y, 2)
        elif style == 1:
            y = y.view(y.size(0), 2, y.size(1) // 2, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
        else:
            y = y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.norm(self.each(y))

    return Block(run, unit=unit, each=each, norm=m.fold(m.norm(8)))


@kind()
def moved_channels(m: Maker) -> nn.Module:
    """Channels in another order: flipped, rolled, picked by index."""
    unit, style = m.unit(6), m.rng.randrange(4)
    functions = [
        lambda y: y.flip(1),
        lambda y: y.roll(2, dims=1),
        lambda y: y.index_select(1, torch.tensor([5, 3, 0, 0, 1, 2])),
        lambda y: y[:, [1, 0, 2, 3, 5, 4]],
    ]
    return Block(lambda self, x: self.out(functions[style](self.unit(x))), unit=unit, out=m.conv(of=6))


@kind("12")
def temporal_shift(m: Maker) -> nn.Module:
    """Some channels are moved by a position (TSM)."""
    unit = m.unit(6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        z = torch.zeros_like(y)
        z[:, :2, 1:] = y[:, :2, :-1]
        z[:, 2:4, :-1] = y[:, 2:4, 1:]
        z[:, 4:] = y[:, 4:]
        return self.out(z)

    return Block(run, unit=unit, out=m.conv(of=6))


@kind("123")
def channels_last(m: Maker) -> nn.Module:
    """Permutation to (N, H, W, C) for linear layers, as in transformers and ConvNeXt."""
    unit = m.unit(6)
    a, b = nn.Linear(6, 8), nn.Linear(8, 6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        z = self.b(F.gelu(self.a(y.movedim(1, -1)))).movedim(-1, 1)
        return self.norm(z) + y

    return Block(run, unit=unit, a=a, b=b, norm=m.norm(6))


@kind("1")
def swapped(m: Maker) -> nn.Module:
    """(N, C, L) -> (N, L, C): the norm after it has a number for each position."""
    layer = nn.Linear(m.channels, 6)
    norm = m.norm(m.space[0], cls=nn.BatchNorm1d)
    return Block(lambda self, x: self.norm(self.linear(x.transpose(1, 2))).transpose(1, 2), linear=layer, norm=norm)


@kind("2")
def unfolded(m: Maker) -> nn.Module:
    """Patches by `unfold`, as a convolution by hand; or crops."""
    unit, style = m.unit(4), m.rng.randrange(2)
    linear = nn.Conv1d(4 * 9, 6, 1)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        if style == 0:
            return self.linear(F.unfold(y, 3, padding=1)).view(len(y), 6, *y.shape[2:])
        return self.out(F.pad(y[..., 1:, 1:], (1, 0, 1, 0)))

    return Block(run, unit=unit, linear=linear, out=m.conv(of=4))


@kind("123", source="midasklr/yolov5prune#6")
def squeezed(m: Maker) -> nn.Module:
    """`squeeze()` without an axis, which would also drop a single channel's dimension."""
    unit, axes = m.unit(4), tuple(range(2, 2 + m.dim))

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        weights = self.linear(y.mean(axes, keepdim=True).squeeze())
        return y * weights.tanh().view(len(x), -1, *(1 for _ in axes))

    return Block(run, unit=unit, linear=nn.Linear(4, 4))


@kind()
def einsum(m: Maker) -> nn.Module:
    """A linear map of the channels by einsum or matmul, with a parameter of the model."""
    unit, style = m.unit(6), m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        if style == 0:
            return torch.einsum("nc...,cd->nd...", y, self.matrix)
        return (y.movedim(1, -1) @ self.matrix).movedim(-1, 1)

    return Block(run, unit=unit, matrix=nn.Parameter(torch.randn(6, 4)))


@kind("2")
def outer_product(m: Maker) -> nn.Module:
    """Bilinear pooling: each channel times each other one."""
    unit = m.unit(4)
    fc = nn.Linear(16, 6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x).flatten(2)
        pooled = self.fc((y @ y.transpose(1, 2) / y.shape[2]).flatten(1))
        return x[:, :1] + pooled[..., None, None]

    return Block(run, unit=unit, fc=fc)


@kind("123")
def broadcast_features(m: Maker) -> nn.Module:
    """A vector of features is expanded over all positions and concatenated or added."""
    unit, layer, norm = m.unit(6), nn.Linear(6, 4), nn.BatchNorm1d(4)
    axes, added = tuple(range(2, 2 + m.dim)), m.chance(0.5)
    wide = m.conv(4, 6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        vector = self.norm(self.linear(y.mean(axes))).relu()
        vector = vector.view(*vector.shape, *(1 for _ in axes))
        if added:
            return self.wide(y) + vector
        return torch.cat([y, vector.expand(-1, -1, *y.shape[2:])], 1)

    return Block(run, unit=unit, linear=layer, norm=m.fold(norm), wide=wide)


@kind("3")
def time_distributed(m: Maker) -> nn.Module:
    """A layer for images applied to each of several, viewed as samples."""
    layer = nn.Conv2d(m.channels, 6, 3, padding=1)
    norm = m.fold(m.norm(6, cls=nn.BatchNorm2d))

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.transpose(1, 2).flatten(0, 1)))
        return y.unflatten(0, (len(x), -1)).transpose(1, 2)

    return Block(run, conv=layer, norm=norm)


@kind("12")
def channels_as_samples(m: Maker) -> nn.Module:
    """Each channel is a sample of another convolution, with a norm of one channel."""
    unit = m.unit(6)
    layer = CONVOLUTIONS[m.dim](1, 1, 3, padding=1)
    norm = m.fold(m.norm(1))

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        return self.out(self.norm(self.each(y.flatten(0, 1).unsqueeze(1))).view(y.shape).tanh())

    return Block(run, unit=unit, each=layer, norm=norm, out=m.conv(of=6))


@kind("2")
def dynamic_weight(m: Maker) -> nn.Module:
    """CondConv: each sample has its own weight, and samples become groups of one convolution."""
    unit = m.unit(6)
    gate = nn.Linear(6, 3)
    norm = m.norm(4)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        mix = self.gate(y.mean((2, 3))).softmax(1)
        weight = torch.einsum("nk,koihw->noihw", mix, self.weight).flatten(0, 1)
        z = F.conv2d(y.reshape(1, -1, *y.shape[2:]), weight, padding=1, groups=len(y))
        return self.norm(z.view(len(y), -1, *y.shape[2:])).relu()

    return Block(run, unit=unit, gate=gate, norm=norm, weight=nn.Parameter(torch.randn(3, 4, 6, 3, 3) / 5))


@kind("2")
def sampled(m: Maker) -> nn.Module:
    """Positions moved by grid_sample, as a spatial transformer does."""
    unit = m.unit(6)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        theta = torch.eye(2, 3).expand(len(y), 2, 3) * 0.8
        grid = F.affine_grid(theta.to(y), list(y.shape), align_corners=False)
        return self.out(F.grid_sample(y, grid, align_corners=False))

    return Block(run, unit=unit, out=m.conv(of=6))
