"""Removing channels without effect changes nothing; dependent layers are resized."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.models.resnet import resnet18, resnet50
from syncbn.policy import cost_of
from tests.policy.nets import TwoStages, images, seeded


class Branches(nn.Module):
    """A depthwise convolution, a residual sum, a concatenation, and a linear layer over flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.depthwise, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)
        self.pool = nn.AvgPool2d(3)
        self.fc1, self.bn4 = nn.Linear(7 * 4, 6), nn.BatchNorm1d(6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.bn1(self.conv1(x)))
        b = a + self.bn2(self.depthwise(a))
        c = torch.relu(self.bn3(self.conv3(b)))
        y = self.pool(torch.cat([b, c], dim=1))
        return self.fc2(torch.relu(self.bn4(self.fc1(y.flatten(1)))))


def silence(norms: list[Any], channels: list[int]) -> None:
    """Make channels constant 0."""
    for norm in norms:
        norm.weight.data[channels] = 0
        norm.bias.data[channels] = 0


def norms_of(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_silent_channels_of_branches_go_and_the_output_stays() -> None:
    net = seeded(Branches).double()
    silence([net.bn1, net.bn2], [1])  # one channel of the residual sum
    silence([net.bn3], [0, 2])
    silence([net.bn4], [3])
    x = images(3).double()
    before = copy.deepcopy(net.state_dict())
    pruned = syncbn.prune(net, 4 / 13, x)  # 4 tied channels, 3 and 6; the output's 3 can't go
    torch.testing.assert_close(pruned.eval()(x), net.eval()(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    shapes = {name: tuple(value.shape) for name, value in pruned.named_parameters()}
    assert shapes["conv1.weight"] == (3, 2, 3, 3)
    assert shapes["depthwise.weight"] == (3, 1, 3, 3)
    assert shapes["conv3.weight"] == (1, 3, 1, 1)
    assert shapes["fc1.weight"] == (5, 4 * 4)
    assert shapes["fc2.weight"] == (3, 5)
    assert pruned.depthwise.groups == pruned.bn2.num_features == len(pruned.bn2.running_var) == 3


# Removable channels of a ResNet of width 4: those inside blocks, and once those that a stage's blocks share.
# 18: (4 + 8 + 16 + 32)·(2 blocks + 1); 50: 4 of the stem + Σ c·(2·blocks + 4).
@pytest.mark.parametrize(("make", "silent", "total"), [(resnet18, 9, 180), (resnet50, 5, 716)], ids=["18", "50"])
@pytest.mark.parametrize("norm", ["batch", "sync", "cross_iteration"])
def test_residual_networks_stay_consistent(make: Callable[..., nn.Module], silent: int, total: int, norm: str) -> None:
    net = seeded(lambda: make(num_classes=10, in_channels=2, stem="cifar", width=4)).double()
    stage = [net.bn1, *(m for m in norms_of(net.layer1) if m.num_features == net.layer1[0].bn1.num_features)]
    silence(stage if make is resnet18 else stage[:1], [0, 2])
    silence([net.layer3[0].bn1], [1, 5, 6])
    syncbn.convert(net, norm)
    x = images(3).double()
    zeros = {id(m): int((m.weight == 0).sum()) for m in norms_of(net)}
    pruned = syncbn.prune(net, (silent + 0.5) / total, x)
    torch.testing.assert_close(pruned.eval()(x), net.eval()(x), rtol=1e-10, atol=1e-10)
    for old, new in zip(norms_of(net), norms_of(pruned), strict=True):
        assert new.num_features == old.num_features - zeros[id(old)]
    pruned.train()(torch.cat([x, x])).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.99])
def test_the_ratio_of_the_smallest_scales_goes(ratio: float) -> None:
    net = seeded(TwoStages)
    net.stem[1].weight.data = torch.tensor([0.1, 0.5, -0.05, 0.9])
    net.body[1].weight.data = torch.tensor([0.3, -0.2, 0.7, 0.8, 0.6])
    pruned = syncbn.prune(net, ratio, images(2))
    left = {0.0: ([0.1, 0.5, -0.05, 0.9], [0.3, -0.2, 0.7, 0.8, 0.6]), 0.3: ([0.5, 0.9], [0.3, -0.2, 0.7, 0.8, 0.6])}
    stem, body = left.get(ratio, ([0.9], [0.8]))  # one of each layer stays
    torch.testing.assert_close(pruned.stem[1].weight.detach(), torch.tensor(stem))
    torch.testing.assert_close(pruned.body[1].weight.detach(), torch.tensor(body))
    assert pruned(images(4)).shape == (4, 3)


def test_the_cost_is_that_of_the_arithmetic() -> None:
    net = seeded(TwoStages)
    x = images(1)
    convolutions = 2 * (4 * 2 * 9 * 16 + 5 * 4 * 9 * 4)  # channels out, channels in, kernel, positions
    assert cost_of(net, x).flops == convolutions + 2 * 5 * 3
    assert cost_of(net, x).parameters == 4 * 2 * 9 + 4 + 8 + 5 * 4 * 9 + 10 + 18
    assert cost_of(syncbn.prune(net, 0.5, x), x).flops < cost_of(net, x).flops
    assert net.training


def test_what_is_not_understood_stays() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
            self.grouped, self.bn2 = nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)
            self.out = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.grouped(self.bn(self.conv(x))))
            return self.out(y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2))

    class MeanOfChannels(nn.Module):
        """A network whose mean has as many rows as there were channels."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.out = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.Conv1d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.bn(self.conv(x)).mean(1))

    for net in (Shuffled(), MeanOfChannels()):
        with pytest.raises(ValueError, match="no channel can be removed"):
            syncbn.prune(net, 0.5, images(2))
    with pytest.raises(ValueError, match="no channel can be removed"):
        syncbn.prune(TwoStages(lambda channels: nn.GroupNorm(1, channels)), 0.5, images(2))


def test_a_converted_model_reverts_after_pruning() -> None:
    net = syncbn.convert(seeded(TwoStages), "sync")
    pruned = syncbn.prune(net, 0.5, images(2))
    expected = pruned.eval()(images(2))
    assert torch.equal(syncbn.revert(pruned)(images(2)), expected)
    assert isinstance(pruned.stem[1], nn.BatchNorm2d)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be at least 0 and below 1"):
        syncbn.prune(TwoStages(), ratio, images(2))


@pytest.mark.parametrize("norm", ["batch_renorm", "decorrelated", "switchable", "adaptive", "recurrent"])
def test_norms_with_more_than_a_number_a_channel_stay_whole(norm: str) -> None:
    with pytest.raises(ValueError, match="no channel can be removed"):
        syncbn.prune(syncbn.convert(seeded(TwoStages), norm), 0.5, images(2))
