"""Paths that evaluation doesn't take, and parts that are called indirectly."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.networks.maker import NORMS, Block, Maker, width_of
from tests.networks.registry import kind


@kind()
def norm_in_training_only(m: Maker) -> nn.Module:
    """A norm that evaluation skips, before one that it doesn't."""
    layer = m.conv()
    skipped, norm = m.norm(layer), m.norm(layer)

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.training:
            y = self.skipped(y)
        return self.out(self.norm(y).relu())

    return Block(run, conv=layer, skipped=skipped, norm=norm, out=m.conv(of=width_of(layer)))


@kind(source="pytorch/vision: googlenet, inception_v3")
def training_only_head(m: Maker) -> nn.Module:
    """An auxiliary head that reads features in training, and doesn't run in evaluation."""
    unit = m.unit(6)
    head = nn.Sequential(*m.pair(4, 6), nn.ReLU())
    m.foldable.remove(head[1]) if head[1] in m.foldable else None

    def run(self: Any, x: Tensor) -> Tensor:
        y = self.unit(x)
        if self.training:
            return self.out(y) + self.head(y).mean()
        return self.out(y)

    return Block(run, unit=unit, head=head, out=m.conv(of=6))


@kind()
def without_gradients(m: Maker) -> nn.Module:
    """A part under no_grad, another with gradients even in inference."""
    a, b = m.unit(6), m.unit(6, 6)

    def run(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
        with torch.enable_grad():
            z = self.b(y)
        return z.detach() + y if not torch.is_grad_enabled() else z + y

    return Block(run, a=a, b=b)


@kind()
def functional_call(m: Maker) -> nn.Module:
    """A part that is called with changed values for its parameters."""
    layer = m.conv(6)
    inner, factor = nn.Sequential(layer, m.norm(layer)), m.rng.choice([1.0, 1.5])

    def run(self: Any, x: Tensor) -> Tensor:
        values = {name: factor * p for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, values, (x,)).relu()

    return nn.Sequential(m.unit(m.channels), Block(run, inner=inner), m.conv(of=6))


@kind()
def data_parallel(m: Maker) -> nn.Module:
    """A part inside one of torch's wrappers."""
    return nn.Sequential(nn.DataParallel(m.unit(6)), m.conv(of=6))


@kind()
def forward_called(m: Maker) -> nn.Module:
    """Layers by `layer.forward(x)`, which no hook sees, or by their class."""
    layer = m.conv(6)
    norm, style = m.norm(layer), m.rng.randrange(2)

    def run(self: Any, x: Tensor) -> Tensor:
        if style == 0:
            return self.norm.forward(self.conv.forward(x)).relu()
        return type(self.norm).forward(self.norm, self.conv(x)).relu()

    return nn.Sequential(m.unit(m.channels), Block(run, conv=layer, norm=norm), m.conv(of=6))


@kind()
def swapped_by_mode(m: Maker) -> nn.Module:
    """A norm for clean batches and one for others (AdvProp, domain-specific norms); evaluation takes the first."""
    layer = m.conv(6)
    norms = nn.ModuleList(NORMS[m.dim](6) for _ in range(2))

    def run(self: Any, x: Tensor) -> Tensor:
        return self.out(self.norms[int(self.training)](self.conv(x)).relu())

    return Block(run, conv=layer, norms=norms, out=m.conv(of=6))
