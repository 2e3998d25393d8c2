"""A fused network equals the network in evaluation, and layers that can't be fused are listed with the reason."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import syncbn
from syncbn.models.resnet import resnet18, resnet50
from syncbn.policy import plan_fusion
from tests.policy.nets import TwoStages, images, seeded

FEEDERS: list[tuple[nn.Module, nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=2, padding_mode="reflect"), syncbn.SyncBatchNorm(4), (2, 4, 5, 5)),
    (nn.Conv3d(2, 3, 2, stride=2, dilation=2), nn.BatchNorm3d(3, affine=False), (2, 2, 6, 6, 6)),
    (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, output_padding=1), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 4, 2, groups=2, bias=False), nn.BatchNorm3d(4), (2, 2, 3, 3, 3)),
    (nn.Linear(4, 6), nn.BatchNorm1d(6, eps=0.1), (5, 4)),
    (nn.Linear(4, 6, bias=False), nn.SyncBatchNorm(6, affine=False), (5, 4)),
]


def fused_quietly(model: nn.Module, x: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer is folded
        return syncbn.fuse(model, x)


@pytest.mark.parametrize(("feeder", "norm", "shape"), FEEDERS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_kind_of_layer(feeder: nn.Module, norm: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    net = seeded(lambda: nn.Sequential(copy.deepcopy(feeder), copy.deepcopy(norm), nn.Tanh())).to(dtype)
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(shape, dtype=dtype)
    fused = fused_quietly(net, x)
    assert isinstance(fused[1], nn.Identity)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(fused(x), net.eval()(x), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [resnet18, resnet50], ids=lambda f: f.__name__)
@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_a_resnet_keeps_no_norm_and_its_logits(make: Any, norm: str) -> None:
    net = seeded(lambda: make(norm=norm, num_classes=10, in_channels=2, stem="cifar", width=4))
    x = images(3)
    fused = fused_quietly(net, x)
    assert not [name for name, module in fused.named_modules() if "BatchNorm" in type(module).__name__]
    assert not fused.training
    expected = net.eval()(x).detach()
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    names = {name.rpartition(".")[0] for name, _ in fused.named_parameters()}
    assert names <= {name for name, _ in net.named_modules()}


def test_a_cross_iteration_norm_leaves_no_hook_on_its_convolution() -> None:
    net = syncbn.convert(seeded(TwoStages), "cross_iteration", window=3)
    fused = fused_quietly(net, images(2))
    torch.testing.assert_close(fused(images(2)), net.eval()(images(2)), rtol=1e-5, atol=1e-5)
    assert not fused.stem[0]._forward_hooks


class Odd(nn.Module):
    """A network with one norm for each reason not to fold it."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("shared", "twice", "residual", "weighted", "normed", "seen", "bare"):
            setattr(self, name, nn.Conv2d(2, 2, 1))
        parametrizations.weight_norm(self.normed)
        self.features = nn.Linear(4, 4)
        self.norms = nn.ModuleDict(
            {
                name: nn.BatchNorm2d(2)
                for name in ("first", "after_first", "twice", "residual", "weighted", "normed", "input", "hooked")
            }
        )
        self.norms["untracked"] = nn.BatchNorm2d(2, track_running_stats=False)
        self.norms["columns"] = nn.BatchNorm1d(2)
        self.norms["unused"] = nn.BatchNorm2d(2)
        self.norms["hooked"].register_forward_hook(lambda module, args, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norms
        y = n["input"](x)
        y = n["first"](self.shared(y)) + n["after_first"](self.shared(y))
        y = n["twice"](n["twice"](self.twice(y)))
        z = self.residual(y)
        y = z + n["residual"](z)
        y = n["weighted"](self.weighted(y)) + self.weighted.weight.sum()
        y = n["normed"](self.normed(y))
        y = n["hooked"](self.seen(y))
        y = n["untracked"](self.bare(y))
        return n["columns"](self.features(y.flatten(2))).sum(2)


def test_what_cannot_be_folded_is_listed_with_the_reason() -> None:
    net = seeded(Odd)
    x = torch.randn(3, 2, 2, 2)
    reasons = {f.layer.removeprefix("norms."): f.reason for f in plan_fusion(net, x)}
    expected = {
        "first": "the Conv2d before it is called 2 times",
        "after_first": "the Conv2d before it is called 2 times",
        "twice": "it is called 2 times",
        "residual": "the output of the Conv2d before it is used elsewhere too",
        "weighted": "the weight of the Conv2d before it is used elsewhere too",
        "normed": "is parametrized",
        "input": "its input isn't the output of a convolution",
        "hooked": "the evaluation of BatchNorm2d isn't",
        "untracked": "it has no running statistics",
        "columns": "it normalizes another dimension",
        "unused": "it is called 0 times",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in str(reasons[name]), (name, reasons[name])
    with pytest.warns(UserWarning, match="11 of 11 batch norms can't be folded: norms.first"):
        fused = syncbn.fuse(net, x)
    torch.testing.assert_close(fused(x), net.eval()(x))


def test_a_network_of_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = TwoStages()

        def forward(self, x: Tensor, scale: float, y: Tensor) -> Tensor:
            return self.net(x * scale + y)

    net = seeded(Sum)
    arguments = (images(2), 0.5, images(2, seed=3))
    torch.testing.assert_close(fused_quietly(net, arguments)(*arguments), net.eval()(*arguments), rtol=1e-5, atol=1e-5)
