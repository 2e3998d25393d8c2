"""Weights that aren't a layer's own parameter: computed, masked, tied, shared, or read elsewhere."""

import copy
import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.networks.maker import CONVOLUTIONS, Block, Maker, width_of
from tests.networks.registry import kind


def _around(m: Maker, layer: Any) -> nn.Module:
    """The layer between two that are plain, with norms."""
    unit = m.unit(m.channels)
    return nn.Sequential(unit, layer, m.norm(layer), m.act(), m.conv(of=width_of(layer)))


@kind(row=True)
def hook_spectral_norm(m: Maker) -> nn.Module:
    """The weight is computed by a forward pre-hook, as before parametrizations."""
    return _around(m, torch.nn.utils.spectral_norm(m.conv()))


@kind(row=True, source="pytorch/pytorch#28594")
def hook_weight_norm(m: Maker) -> nn.Module:
    """The same; deepcopy refuses it until it has run without gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return _around(m, torch.nn.utils.weight_norm(m.conv()))


@kind(row=True)
def pruning_mask(m: Maker) -> nn.Module:
    """torch.nn.utils.prune multiplies the weight by a mask before each forward pass."""
    layer = m.conv()
    if m.chance(0.5):
        prune.random_unstructured(layer, "weight", amount=0.4)
    else:
        prune.random_structured(layer, "weight", amount=1, dim=0)
    return _around(m, layer)


@kind(row=True)
def parametrized(m: Maker) -> nn.Module:
    parametrization = m.rng.choice([parametrizations.weight_norm, parametrizations.spectral_norm])
    return _around(m, parametrization(m.conv()))


@functools.cache
def _standardized(dim: int) -> type[nn.Module]:
    class Standardized(CONVOLUTIONS[dim]):
        """Weight standardization (BiT, NFNet)."""

        def forward(self, x: Tensor) -> Tensor:
            axes = tuple(range(1, self.weight.dim()))
            mean = self.weight.mean(axes, keepdim=True)
            weight = (self.weight - mean) / (self.weight.std(axes, keepdim=True) + 1e-3)
            return self._conv_forward(x, weight, self.bias)

    return Standardized


@functools.cache
def _activating(dim: int) -> type[nn.Module]:
    base = CONVOLUTIONS.get(dim, nn.Linear)

    class Activating(base):
        """A layer with its activation."""

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    return Activating


@functools.cache
def _self_padding(dim: int) -> type[nn.Module]:
    class SelfPadding(CONVOLUTIONS[dim]):
        """Pads in its own forward, to keep the sizes (effdet, TensorFlow's "same")."""

        def forward(self, x: Tensor) -> Tensor:
            pads = [p for k in reversed(self.kernel_size) for p in ((k - 1) // 2, k // 2)]
            return super().forward(F.pad(x, pads))

    return SelfPadding


@kind("123", row=True)
def standardized_conv(m: Maker) -> nn.Module:
    return _around(m, m.conv(cls=_standardized(m.dim), kernel_size=3))


@kind(row=True)
def activating_conv(m: Maker) -> nn.Module:
    layer = m.conv(cls=_activating(m.dim))
    return nn.Sequential(m.unit(m.channels), layer, m.norm(layer), m.act())


@kind("123", row=True)
def self_padding_conv(m: Maker) -> nn.Module:
    kernel = m.rng.choice([2, 3])
    return _around(m, m.conv(cls=_self_padding(m.dim), kernel_size=kernel, padding=0, padding_mode="zeros"))


@kind("0", row=True)
def tied_weights(m: Maker) -> nn.Module:
    """An autoencoder whose decoder has the encoder's transposed weight, or whose layers share a Parameter."""
    first, norm = m.pair(6)
    second, style = nn.Linear(6, m.width()), m.rng.randrange(3)
    bn = m.norm(second)
    if style == 2:
        again = nn.Linear(6, width_of(second))
        again.weight = second.weight  # two layers, one Parameter
        with_norm = m.norm(second)

        def run(self: Any, x: Tensor) -> Tensor:
            y = self.norm(self.first(x)).relu()
            return self.bn(self.second(y)) + self.with_norm(self.again(y.tanh()))

        return Block(run, first=first, norm=norm, second=second, again=again, bn=bn, with_norm=with_norm)

    def run(self: Any, x: Tensor) -> Tensor:
        z = self.bn(self.second(self.norm(self.first(x)).relu())).relu()
        if style == 0:
            return F.linear(z, self.second.weight.t())
        return z @ self.second.weight

    return Block(run, first=first, norm=norm, second=second, bn=bn)


@kind("123")
def tied_convolutions(m: Maker) -> nn.Module:
    """A transposed convolution with the weight of the convolution."""
    unit = m.unit(6)
    layer = CONVOLUTIONS[m.dim](6, 8, 3, padding=1)
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[m.dim]

    def run(self: Any, x: Tensor) -> Tensor:
        return transposed(self.norm(self.conv(self.unit(x))).relu(), self.conv.weight, padding=1)

    return Block(run, unit=unit, conv=layer, norm=m.norm(layer))


@kind(row=True)
def bare_parameter(m: Maker) -> nn.Module:
    """A parameter of the model itself with one number per channel: a layer scale, a bias, a position embedding."""
    layer, norm = m.pair()
    of = width_of(layer)
    style = m.rng.randrange(4)
    shape = (1, of, *m.space) if style == 2 and m.dim else (of,) if m.dim == 0 else (of, *m.along)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if style == 0:
            return self.out((y * self.scale).relu())
        if style == 1:
            return self.out(y.relu() * self.scale)
        return self.out((y + self.scale).relu()) if style == 2 else self.out(torch.addcmul(y, y, self.scale))

    return Block(run, conv=layer, norm=norm, scale=nn.Parameter(torch.randn(shape)), out=m.conv(of=of))


@kind()
def channel_buffer(m: Maker) -> nn.Module:
    """A buffer or a plain tensor with one number per channel."""
    layer, norm = m.pair()
    of, plain = width_of(layer), m.chance(0.5)
    block = Block(lambda self, x: self.out(self.norm(self.conv(x)) * self.scale), conv=layer, norm=norm)
    block.out = m.conv(of=of)
    scale = torch.rand(of, *m.along) + 0.5
    if plain:
        block.scale = scale
    else:
        block.register_buffer("scale", scale, persistent=m.chance(0.5))
    return block


@kind("123", source="adobe/antialiased-cnns")
def blur(m: Maker) -> nn.Module:
    """A depthwise convolution with a fixed filter, expanded to the channels."""
    unit = m.unit()
    of = width_of(unit[0])
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[m.dim]
    stored = torch.rand(of, 1, *(3 for _ in m.space)) if m.chance(0.5) else None
    one = torch.rand(1, 1, *(3 for _ in m.space))

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        weight = one.expand(y.shape[1], *one.shape[1:]) if stored is None else self.filter
        return self.out(function(y, weight, padding=1, groups=y.shape[1]))

    block = Block(run, unit=unit, out=m.conv(of=of))
    block.register_buffer("filter", stored)
    return block


@kind("123")
def functional_weight(m: Maker) -> nn.Module:
    """A layer's weight and bias passed to the function, without a call of the layer."""
    layer = CONVOLUTIONS[m.dim](m.channels, 6, 3, padding=1)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[m.dim]
    bn = m.norm(layer)

    def run(self: Any, x: Tensor) -> Tensor:
        return self.norm(function(x, self.conv.weight, self.conv.bias, padding=1)).relu()

    return nn.Sequential(m.unit(m.channels), Block(run, conv=layer, norm=bn), m.conv(of=6))


@kind()
def regularized_weight(m: Maker) -> nn.Module:
    """Another use of a weight in the forward pass: its norm scales the features."""
    layer = m.conv()

    def run(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * (1 + self.conv.weight.square().mean())

    return Block(run, conv=layer, norm=m.norm(layer))


@kind(source="Tencent/TNN#808")
def shared_weight_two_norms(m: Maker) -> nn.Module:
    """Two convolutions with one Parameter, each with a norm."""
    a = m.conv(6)
    b = copy.deepcopy(a)  # of the same padding and dilation
    b._parameters |= {"weight": a.weight, "bias": None}
    na, nb = m.norm(a), m.norm(b)

    def run(self: Any, x: Tensor) -> Tensor:
        return self.na(self.a(x)) + self.nb(self.b(x.tanh())).relu()

    return Block(run, a=a, b=b, na=na, nb=nb)


@kind(source="pytorch/pytorch#197539")
def half_normed(m: Maker) -> nn.Module:
    """A convolution is called twice, and normed on one path only."""
    layer = m.conv()
    return Block(lambda self, x: self.norm(self.conv(x)) + self.conv(x.tanh()).relu(), conv=layer, norm=m.norm(layer))


@kind()
def called_twice(m: Maker) -> nn.Module:
    """A layer and its norm are called twice, or only the norm is."""
    layer, both = m.conv(m.channels), m.chance(0.5)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        return self.norm(self.conv(y)) if both else self.norm(y)

    return Block(run, conv=layer, norm=m.norm(layer))
