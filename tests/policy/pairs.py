"""Convolutions and norms in various connections, and whether the norm can be folded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.policy.strangers import (
    ActivatedConv,
    ActivatedNorm,
    BatchNormAct2d,
    ByNumpy,
    ClampedNorm,
    DeafConv,
    LeakyNorm,
    ModelOutput,
    PaddedConv,
    Pair,
    Result,
    StandardizedConv,
    changed,
    swish,
)


def in_the_shortcut(net: Any, x: Tensor) -> Tensor:
    y = F.relu_(net.norm(net.conv(x)))
    out = net.norm2(net.conv2(y))
    out += y
    return F.relu(out, inplace=True)


def written(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :, 0] = 0
    return net.norm(y)


def written_later(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.norm(y)
    y.view(-1).zero_()
    return z + y


def both(function: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Make a body in which a function also uses the convolution's output."""

    def body(net: Any, x: Tensor) -> Any:
        y = net.conv(x)
        return net.norm(y) + function(y)

    return body


def cached(net: Any, x: Tensor) -> Tensor:
    net.features = net.conv(x)
    return net.norm(net.features)


def as_list(net: Any) -> None:
    net.pairs = [(net.conv, net.norm)]
    net.body = lambda net, x: net.pairs[0][1](net.pairs[0][0](x))


def not_for_all(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if x.mean() < 5 else net.norm2(y)


# Outcome of the norm `norm`: "folded", or a part of the reason why it isn't.
PAIRS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "in-place activation": (lambda: Pair(lambda net, x: F.relu(net.norm(net.conv(x)), inplace=True)), "folded"),
    "in-place sum": (lambda: Pair(in_the_shortcut), "folded"),
    "dropout between": (lambda: Pair(lambda net, x: net.norm(F.dropout(net.conv(x), training=False))), "folded"),
    "a view of it": (lambda: Pair(lambda net, x: net.norm(net.conv(x).view(x.shape[0], 4, 64, 1))), "folded"),
    "written in a slice": (lambda: Pair(written), "fill_ made it"),
    "written in a channel": (lambda: Pair(lambda net, x: net.norm(net.conv(x)[:, 1].mul_(2)._base)), "mul_ made it"),
    "written afterwards": (lambda: Pair(written_later), "used elsewhere too: by zero_"),
    "scripted": (lambda: Pair(both(swish)), "used elsewhere too: by sigmoid"),
    "numpy in a function": (lambda: Pair(both(ByNumpy.apply)), "used elsewhere too: by numpy"),
    "numpy": (lambda: Pair(both(lambda y: float(np.abs(y.numpy()).mean()))), "used elsewhere too: by numpy"),
    "a Python list": (lambda: Pair(both(lambda y: torch.tensor(y.tolist()))), "used elsewhere too: by tolist"),
    "a Python number": (lambda: Pair(both(lambda y: y.max().item())), "used elsewhere too: by max"),
    "another layer": (
        lambda: Pair(lambda net, x: net.norm(y := net.conv(x)) + net.conv2(y)),
        "by convolution in conv2",
    ),
    "a hook that changes": (changed(lambda net: net.conv.register_forward_hook(lambda m, a, o: 2 * o)), "mul made it"),
    "a hook that keeps": (
        changed(lambda net: net.conv.register_forward_hook(lambda m, a, o, kept=[]: kept.append(o))),
        "the model returns it, or keeps it",
    ),
    "a hook that looks": (changed(lambda net: net.conv.register_forward_hook(lambda m, a, o: None)), "folded"),
    "a hook on the norm": (changed(lambda net: net.norm.register_forward_hook(lambda m, a, o: 2 * o)), "it has hooks"),
    "spectral_norm": (changed(lambda net: spectral_norm(net.conv)), "the weight of the Conv2d before it is computed"),
    "weight_norm": (changed(lambda net: weight_norm(net.conv)), "the weight of the Conv2d before it is computed"),
    "a pruning mask": (changed(lambda net: prune.l1_unstructured(net.conv, "weight", 0.3)), "the weight of the Conv2d"),
    "a mask of the norm": (changed(lambda net: prune.l1_unstructured(net.norm, "weight", 0.5)), "it has hooks"),
    "parametrized": (changed(lambda net: parametrizations.spectral_norm(net.conv)), "is parametrized"),
    "standardized": (
        changed(lambda net: setattr(net, "conv", StandardizedConv(3, 4, 3))),
        "the weight of the StandardizedConv before it is computed",
    ),
    "activated conv": (changed(lambda net: setattr(net, "conv", ActivatedConv(3, 4, 3))), "relu in conv made it"),
    "padded conv without bias": (changed(lambda net: setattr(net, "conv", PaddedConv(3, 4, 3, bias=False))), "folded"),
    "padded conv": (changed(lambda net: setattr(net, "conv", PaddedConv(3, 4, 3))), "folded"),
    "deaf conv": (changed(lambda net: setattr(net, "conv", DeafConv(3, 4, 3, bias=False))), "wouldn't use a bias"),
    "activated norm": (changed(lambda net: setattr(net, "norm", ActivatedNorm(4))), "folded"),
    "leaky norm": (changed(lambda net: setattr(net, "norm", LeakyNorm(4))), "folded"),
    "clamped norm": (changed(lambda net: setattr(net, "norm", ClampedNorm(4))), "the evaluation of ClampedNorm isn't"),
    "timm's norm": (changed(lambda net: setattr(net, "norm", BatchNormAct2d(4))), "folded"),
    "a dataclass": (lambda: Pair(lambda net, x: Result(net.norm(y := net.conv(x)), y)), "the model returns it"),
    "a ModelOutput": (
        lambda: Pair(lambda net, x: ModelOutput(a=net.norm(y := net.conv(x)), b=y)),
        "the model returns it",
    ),
    "cached": (lambda: Pair(cached), "the model returns it, or keeps it"),
    "in a Python list": (changed(as_list), "folded"),
    "its eps is read": (lambda: Pair(lambda net, x: net.norm(net.conv(x)) * net.norm.eps), "folded"),
    "its scale is read": (lambda: Pair(lambda net, x: net.norm(net.conv(x)) * net.norm.weight.sum()), "weight is used"),
    "the weight is read": (
        lambda: Pair(lambda net, x: net.norm(net.conv(x)) * net.conv.weight.sum()),
        "is used elsewhere",
    ),
    "called twice": (lambda: Pair(lambda net, x: net.conv(x) + net.norm(net.conv(-x))), "called 2 times"),
    "one channel": (
        changed(lambda net: (setattr(net, "conv", nn.Conv2d(3, 1, 3)), setattr(net, "norm", nn.BatchNorm2d(1)))),
        "folded",
    ),
    "shared statistics": (
        changed(
            lambda net: (
                setattr(net.norm2, "running_mean", net.norm.running_mean),
                setattr(net, "body", lambda net, x: net.norm2(net.conv2(net.norm(net.conv(x))))),
            )
        ),
        "folded",
    ),
    "a variance near 0": (
        changed(lambda net: net.norm.register_buffer("running_var", torch.full((4,), 1e-30))),
        "folded",
    ),
    "no_grad inside": (lambda: Pair(torch.no_grad()(lambda net, x: net.norm(net.conv(x)))), "folded"),
    "forward called": (lambda: Pair(lambda net, x: net.norm(net.conv.forward(x))), "outside of one"),
}
