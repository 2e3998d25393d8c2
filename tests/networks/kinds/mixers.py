"""Operations in which each channel depends on others."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.maker import Block, Maker
from tests.networks.registry import kind


def _between(m: Maker, function: Any) -> nn.Module:
    unit = m.unit(6)
    return Block(lambda self, x: self.out(function(self.unit(x))), unit=unit, out=m.conv(of=6))


@kind()
def channel_softmax(m: Maker) -> nn.Module:
    return _between(m, m.rng.choice([lambda y: y.softmax(1), lambda y: F.log_softmax(y, dim=1)]))


@kind()
def channel_statistics(m: Maker) -> nn.Module:
    """A mean, a largest value, a norm or a sum over channels."""
    functions = [
        lambda y: y - y.mean(1, keepdim=True),
        lambda y: y * y.amax(1, keepdim=True),
        lambda y: F.normalize(y, dim=1),
        lambda y: y.cumsum(1),
        lambda y: y / (1 + y.square().sum(1, keepdim=True)),
        lambda y: F.local_response_norm(y, 3) if y.dim() > 2 else y.sort(1).values,
        lambda y: y + y.logsumexp(1, keepdim=True),
    ]
    return _between(m, m.rng.choice(functions))


@kind()
def layer_norm(m: Maker) -> nn.Module:
    """A layer norm over channels, which are its last dimension."""
    unit = m.unit(6)
    return Block(
        lambda self, x: self.out(self.ln(self.unit(x).movedim(1, -1)).movedim(-1, 1)),
        unit=unit,
        ln=nn.LayerNorm(6),
        out=m.conv(of=6),
    )


@kind(source="microsoft/nni#5069")
def group_norm(m: Maker) -> nn.Module:
    unit = m.unit(6)
    return nn.Sequential(unit, nn.GroupNorm(m.rng.choice([1, 2, 3]), 6), m.act(), m.conv(of=6))


@kind("123", source="pytorch/pytorch#58843")
def instance_norm(m: Maker) -> nn.Module:
    """Normalizes each image's channel; with running statistics it looks like a batch norm in evaluation."""
    cls = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[m.dim]
    layer = m.conv(6)
    return nn.Sequential(layer, cls(6, affine=m.chance(0.5), track_running_stats=m.chance(0.5)), m.act(), m.conv(of=6))


@kind("2")
def global_response(m: Maker) -> nn.Module:
    """ConvNeXt V2: each channel against the mean of all."""

    def respond(y: Tensor) -> Tensor:
        strength = y.square().sum((2, 3), keepdim=True).add(1e-6).sqrt()
        return y + y * strength / (strength.mean(1, keepdim=True) + 1e-3)

    return _between(m, respond)


@kind("123")
def self_attention(m: Maker) -> nn.Module:
    """Positions attend to positions; queries, keys and values are convolutions with norms."""
    q, k, v = (nn.Sequential(*m.pair(4, kernel_size=1)) for _ in range(3))

    def run(self: Any, x: Tensor) -> Tensor:
        queries, keys, values = (part(x).flatten(2) for part in (self.q, self.k, self.v))
        scores = (queries.transpose(1, 2) @ keys / 2).softmax(-1)
        return self.out((values @ scores.transpose(1, 2)).view(len(x), 4, *x.shape[2:]))

    return Block(run, q=q, k=k, v=v, out=m.conv(of=4))


@kind("12")
def multihead_attention(m: Maker) -> nn.Module:
    """torch's own module over positions, or scaled_dot_product_attention over heads."""
    unit, style = m.unit(8), m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        tokens = y.flatten(2).transpose(1, 2)
        if style == 0:
            mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        else:
            heads = self.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return mixed.transpose(1, 2).view(y.shape) + y

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    return Block(run, unit=unit, attention=attention, qkv=nn.Linear(8, 24))


@kind("1")
def recurrent(m: Maker) -> nn.Module:
    """Features over time into an LSTM or a GRU."""
    unit = m.unit(6)
    cell = m.rng.choice([nn.LSTM, nn.GRU])(6, 4, batch_first=True)
    return Block(lambda self, x: self.cell(self.unit(x).transpose(1, 2))[0].transpose(1, 2), unit=unit, cell=cell)


@kind()
def maxout(m: Maker) -> nn.Module:
    """The largest of each two channels."""
    layer, norm = m.pair(8)
    return Block(
        lambda self, x: self.out(self.norm(self.conv(x)).unflatten(1, (4, 2)).amax(2)),
        conv=layer,
        norm=norm,
        out=m.conv(of=4),
    )


@kind("0")
def bilinear(m: Maker) -> nn.Module:
    a, b = m.unit(4), m.unit(6)
    return Block(lambda self, x: self.mix(self.a(x), self.b(x)), a=a, b=b, mix=nn.Bilinear(4, 6, 5))


@kind("12")
def fourier(m: Maker) -> nn.Module:
    """A Fourier transform over channels or positions."""
    axis = m.rng.choice([1, -1])
    return _between(m, lambda y: torch.fft.fft(y, dim=axis).real)
