"""Networks in various styles that fuse and prune must handle. (N, 3, 8, 8) or (N, 3) -> anything."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.surgery.forward import copied, tensors_in


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Convert to float64 and eval mode, with γ, β and statistics unlike a new network's."""
    torch.manual_seed(seed)
    net = make().double().eval()
    for module in net.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            for name in ("weight", "bias"):
                if isinstance(module._parameters.get(name), Tensor):
                    nn.init.normal_(module._parameters[name])
    return net


def images(count: int = 2, seed: int = 1) -> Tensor:
    """(count, 3, 8, 8) float64."""
    return 2 * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(net: nn.Module, x: Any) -> list[Tensor]:
    """Tensors that a network returns in evaluation; the network isn't changed."""
    torch.manual_seed(0)
    arguments = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        return list(tensors_in(copied(net).eval()(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))))


class Pair(nn.Module):
    """Two convolutions and two norms; `body` calls them."""

    def __init__(self, body: Callable[[Any, Tensor], Any] = lambda net, x: net.norm(net.conv(x))) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def changed(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    """A changed `Pair` whose norm follows its convolution."""

    def make() -> nn.Module:
        net = Pair()
        change(net)
        return net

    return make


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


class ByNumpy(torch.autograd.Function):
    """tanh, computed outside torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))


class StandardizedConv(nn.Conv2d):
    """Weights of mean 0, made at each call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ActivatedConv(nn.Conv2d):
    """A convolution with its own ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class PaddedConv(nn.Conv2d):
    """A convolution that pads by itself, as in TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, self.padding)


class DeafConv(nn.Conv2d):
    """A convolution that ignores a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


class ActivatedNorm(nn.BatchNorm2d):
    """A norm with its own ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class LeakyNorm(nn.BatchNorm2d):
    """A norm with an activation that changes few numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.3)


class ClampedNorm(nn.BatchNorm2d):
    """A norm that changes only large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-100, 100)


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's layer, as its documentation describes it; it calls the function itself."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop = nn.Identity()
        self.act = nn.PReLU(num_features)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        x = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps)
        return self.act(self.drop(x))


@dataclasses.dataclass
class Result:
    """Result of a network."""

    first: Tensor
    second: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """A dictionary with attributes, as in transformers."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class DenseLayer(nn.Module):
    """A layer of DenseNet: norm, relu, conv, twice."""

    def __init__(self, channels: int, growth: int = 4) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(y), inplace=True))


class DenseNet(nn.Module):
    """As in torchvision: a list of features that grows after its concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.layers = nn.ModuleList([DenseLayer(6 + 4 * i) for i in range(3)])
        self.norm, self.head = nn.BatchNorm2d(18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [F.relu(self.norm0(self.conv0(x)), inplace=True)]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(F.relu(self.norm(torch.cat(features, 1)), inplace=True).mean((2, 3)))


class BasicBlock(nn.Module):
    """As in torchvision: one in-place ReLU for all, and an in-place sum."""

    def __init__(self, channels: int, planes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if channels != planes:
            self.downsample = nn.Sequential(nn.Conv2d(channels, planes, 1, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def resnet18() -> nn.Module:
    """With 20 norms, as torchvision's, and narrow."""
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    blocks = [BasicBlock(c, p) for c, p in ((4, 4), (4, 4), (4, 6), (6, 6), (6, 8), (8, 8), (8, 10), (10, 10))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5))


def vgg_bn() -> nn.Module:
    """With 8 norms, as torchvision's vgg11_bn, and narrow."""
    layers: list[nn.Module] = []
    channels = 3
    for i, planes in enumerate((4, 6, 8, 8, 8, 8, 8, 8)):
        layers += [nn.Conv2d(channels, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if i in (0, 3) else []
        channels = planes
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5)]
    return nn.Sequential(*layers, *head)


class Inception(nn.Module):
    """As googlenet's: branches that are concatenated, and a head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = self.unit(3, 4, 1)
        self.branch2 = nn.Sequential(self.unit(3, 3, 1), self.unit(3, 5, 3))
        self.branch3 = nn.Sequential(nn.MaxPool2d(3, 1, 1), self.unit(3, 2, 1))
        self.after = self.unit(11, 6, 3)
        self.head, self.aux = nn.Conv2d(6, 5, 1), nn.Sequential(self.unit(6, 4, 1), nn.Conv2d(4, 5, 1))

    @staticmethod
    def unit(channels: int, planes: int, size: int) -> nn.Module:
        conv = nn.Conv2d(channels, planes, size, padding=size // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(planes, eps=0.001), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Any:
        y = self.after(torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1))
        return (self.head(y), self.aux(F.dropout2d(y, 0.1))) if self.training else self.head(y)
