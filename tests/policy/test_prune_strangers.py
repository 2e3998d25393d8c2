"""Pruning networks in various styles: exact, or channels are held by a named operation."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import syncbn
from tests.policy import strangers
from tests.policy.pruned import Net, check, norms_of
from tests.policy.strangers import images, results, seeded

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


class Depthwise(Net):
    """As in MobileNet: a norm, a depthwise convolution, optionally another norm."""

    def __init__(self, bias: bool, norm: bool, outputs: int = 8, groups: int = 8) -> None:
        super().__init__(into=outputs)
        self.depthwise = nn.Conv2d(8, outputs, 3, padding=1, groups=groups, bias=bias)
        self.norm2 = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def between(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm2(self.depthwise(F.relu6(x))))


class Transposed(Net):
    """A transposed convolution between two norms."""

    def __init__(self, groups: int, outputs: int = 8) -> None:
        super().__init__(into=outputs)
        self.up, self.norm2 = nn.ConvTranspose2d(8, outputs, 2, 2, groups=groups), nn.BatchNorm2d(outputs)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.up(F.relu(x))))


GROUPED: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: Depthwise(False, False), (4,)),
    (lambda: Depthwise(True, True), (4, 4)),
    (lambda: Depthwise(False, True, 16), (4, 8)),  # two outputs for each input
    (lambda: Depthwise(True, True, 8, 4), (4, 4)),  # whole groups
    (lambda: Depthwise(True, True, 16, 2), (4, 8)),  # the same channels of each group
    (lambda: Transposed(1), (4, 4)),
    (lambda: Transposed(2, 16), (4, 8)),
    (lambda: Transposed(4, 16), (4, 8)),
    (lambda: Transposed(8), (4, 4)),
    (lambda: Transposed(8, 16), (4, 8)),
]


@pytest.mark.parametrize(("make", "counts"), GROUPED)
def test_grouped_and_transposed_convolutions(make: Callable[[], nn.Module], counts: tuple[int, ...]) -> None:
    net = seeded(make)
    for norm in norms_of(net).values():  # those of one group are alike, and so of one rank
        norm.weight.data = torch.arange(1.0, len(norm.weight) + 1, dtype=torch.float64) * len(norm.weight)
    removed = check(net, 0.5, images(), [images(3, 5)])
    assert sum(map(len, removed.values())) == sum(counts)
    pruned = syncbn.prune(net, 0.5, images())
    for module in pruned.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert module.in_channels % module.groups == module.out_channels % module.groups == 0
    again = copy.deepcopy(pruned)
    again.load_state_dict(pruned.state_dict())
    again.train()(images(4)).sum().backward()


def test_a_depthwise_convolution_with_a_bias_and_no_norm_holds() -> None:
    (step,) = syncbn.plan_prune(seeded(lambda: Depthwise(True, False)), 0.5, images())
    assert set(step.held.values()) == {"convolution in out reads something else than 0 where γ and β are 0"}


def test_groups_that_are_a_number_in_the_code_stay() -> None:
    class Functional(Net):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.randn(8, 1, 3, 3))

        def between(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.filters, padding=1, groups=8)

    (step,) = syncbn.plan_prune(seeded(Functional), 0.5, images())
    assert set(step.held.values()) == {"convolution"}


# --- sums, concatenations, outputs ----------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """relu(norm(conv(x)) + short(x)), whose shortcut may have a norm."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.short = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8) if normed else nn.Identity())
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.conv(x)) + self.short(x)))


def test_a_shortcut_without_a_norm_holds() -> None:
    assert len(check(seeded(lambda: Shortcut(True)), 0.5, images(), [images(3, 5)])["norm"]) == 4
    (step,) = syncbn.plan_prune(seeded(lambda: Shortcut(False)), 0.5, images())
    assert set(step.held.values()) == {"convolution in out reads something else than 0 where γ and β are 0"}


def test_an_activation_before_the_sum_with_a_shortcut_holds() -> None:
    """conv(relu(bn(x))) + short(x): readers of the sum depend on the first convolution's bias and the shortcut."""

    class Preactivated(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def between(self, x: Tensor) -> Tensor:
            y = self.middle(x)
            return self.conv2(F.relu(self.norm2(y))) + y

    net = seeded(Preactivated)
    first, second = syncbn.plan_prune(net, 0.5, images())
    assert (first.removed, second.removed) == ((), ())
    assert {*first.held.values(), *second.held.values()} == {
        "convolution in out reads something else than 0 where γ and β are 0"
    }


@pytest.mark.parametrize("start", [0, 3])
def test_features_that_are_put_into_a_tensor_of_fixed_size_stay(start: int) -> None:
    """y = zeros(...); y[:, :8] = a(x): the places are numbers in the code."""

    class Assembled(Net):
        def __init__(self) -> None:
            super().__init__(into=12)

        def between(self, x: Tensor) -> Tensor:
            y = torch.zeros(x.shape[0], 12, *x.shape[2:], dtype=x.dtype)
            y[:, start : start + 8] = F.relu(x)
            return y

    net = seeded(Assembled)
    (step,) = syncbn.plan_prune(net, 0.5, images())
    assert (step.removed, len(step.held)) == ((), 8)
    with pytest.raises(ValueError, match="no channel can be removed"):
        syncbn.prune(net, 0.5, images())


@pytest.mark.parametrize("make", [strangers.resnet18, strangers.vgg_bn, strangers.Inception, strangers.DenseNet])
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_networks_of_torchvision(make: Callable[[], nn.Module], ratio: float) -> None:
    net = seeded(make)
    removed = check(net, ratio, images(), [images(3, 5)])
    assert sum(map(len, removed.values())) > 0.1 * sum(norm.num_features for norm in norms_of(net).values())
    pruned = syncbn.prune(net, ratio, images())
    pruned.train()(images(4))  # heads that run in training only, too


@pytest.mark.parametrize(
    "wrap", [strangers.Result, lambda a, b: strangers.ModelOutput(a=a, b=b), lambda a, b: [a, {"b": b}]]
)
def test_what_the_network_returns_stays_whole(wrap: Callable[..., Any]) -> None:
    class Returns(Net):
        def forward(self, x: Tensor) -> Any:
            features = F.relu(self.norm(self.conv(x)))
            return wrap(self.out(features), features)

    (step,) = syncbn.plan_prune(seeded(Returns), 0.5, images())
    assert set(step.held.values()) == {"the model returns it, or keeps it"}


class Linears(nn.Module):
    """Linear layers with norms, called by `body`. (N, 3) -> (N, *)."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(3, 8), nn.BatchNorm1d(8)
        self.fc2, self.norm2 = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.scale, self.out = nn.Parameter(torch.randn(8)), nn.Linear(8, 2)
        self.side = nn.Linear(3, 8)
        self.wide, self.up = nn.Linear(24, 2), nn.ConvTranspose2d(8, 2, 2)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def hidden(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.norm1(net.fc1(x)))


def both(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = hidden(net, x)
    return y, F.relu(net.norm2(net.fc2(y)))


def maps(net: Any, x: Tensor) -> Tensor:
    """Torch-Pruning #125: features that a view makes channels of, by the number that a layer knows."""
    return net.up(hidden(net, x).view(-1, net.up.in_channels, 1, 1))


LINEARS: dict[str, tuple[Callable[[Any, Tensor], Any], int | str]] = {
    "a bare parameter": (lambda net, x: net.out(hidden(net, x) * net.scale), 4),
    "a bare parameter that is added": (
        lambda net, x: net.out(hidden(net, x) + net.scale),
        "reads something else than 0",
    ),
    "tied weights": (
        lambda net, x: F.linear(F.relu(net.norm2(net.fc2(hidden(net, x)))), net.fc2.weight.t()),
        "the other way round",
    ),
    "a transposed copy": (lambda net, x: (net.fc2.weight.t() @ hidden(net, x).t()).t(), "mm"),
    "wide and deep (Torch-Pruning #481)": (lambda net, x: net.wide(torch.cat([*both(net, x), net.side(x)], -1)), 8),
    "twice the same (Torch-Pruning #146)": (lambda net, x: net.wide(torch.cat([hidden(net, x)] * 3, 1)), 4),
    "a view (Torch-Pruning #125)": (maps, 4),
    "a view of fixed size": (lambda net, x: net.out(hidden(net, x).view(-1, 8)), "view"),
    "pooled features": (lambda net, x: net.out(F.avg_pool1d(hidden(net, x), 3, 1, 1)), "avg_pool2d"),
    "tokens": (lambda net, x: net.out(hidden(net, x).view(x.shape[0], 1, -1).expand(-1, 3, -1)), 4),
    "einsum": (lambda net, x: torch.einsum("ni,oi->no", hidden(net, x), net.out.weight), "bmm"),
    "its own products": (lambda net, x: (y := hidden(net, x)) @ y.t(), "mm"),
    "a sum over features": (lambda net, x: hidden(net, x).sum(1), "sum"),
    "the shape": (lambda net, x: net.out(hidden(net, x)) * hidden(net, x).shape[1] ** 0.5, "mul"),
}


@pytest.mark.filterwarnings("ignore:example_input doesn't reach")  # the layers of the other cases
@pytest.mark.parametrize("name", LINEARS)
def test_linear_layers(name: str) -> None:
    body, expected = LINEARS[name]
    net = seeded(lambda: Linears(body))
    x = torch.randn(5, 3, dtype=torch.float64)
    plan = {step.layer: step for step in syncbn.plan_prune(net, 0.5, x)}
    if isinstance(expected, int):
        removed = check(net, 0.5, x, [2 * x, x.flip(0)])
        assert sum(map(len, removed.values())) == expected
    else:
        assert all(expected in reason for reason in plan["norm1"].held.values()), plan
        assert len(plan["norm1"].held) == 8


def test_unusual_layouts() -> None:
    """AvgPool2d on (N, C, L) pools over channels; on (C, L) and (C, H, W) without a batch likewise."""

    class Sequence(nn.Module):
        def __init__(self, pool: nn.Module) -> None:
            super().__init__()
            self.conv, self.norm, self.pool = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), pool
            self.out = nn.Conv1d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.pool(F.relu(self.norm(self.conv(x)))))

    x = torch.randn(2, 3, 9, dtype=torch.float64)
    assert len(check(seeded(lambda: Sequence(nn.AvgPool1d(3, 1, 1))), 0.5, x, [2 * x])["norm"]) == 4
    for pool in (nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((8, 9))):
        (step,) = syncbn.plan_prune(seeded(lambda pool=pool: Sequence(pool)), 0.5, x)
        assert len(step.held) == 8


# --- weights that aren't what they seem -----------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "spectral_norm before": (lambda net: spectral_norm(net.conv), "native_batch_norm in norm"),
    "spectral_norm after": (lambda net: spectral_norm(net.out), "convolution in out"),
    "weight_norm after": (lambda net: weight_norm(net.out), "convolution in out"),
    "a pruning mask after": (lambda net: prune.l1_unstructured(net.out, "weight", 0.3), "convolution in out"),
    "parametrized": (lambda net: parametrizations.weight_norm(net.out), "convolution in out"),
    "a standardized weight": (
        lambda net: setattr(net, "out", strangers.StandardizedConv(8, 4, 3)),
        "convolution in out",
    ),
    "a convolution with a ReLU": (lambda net: setattr(net, "conv", strangers.ActivatedConv(3, 8, 3)), None),
    "a hook that doubles": (lambda net: net.conv.register_forward_hook(lambda m, a, o: 2 * o), None),
    "a hook that adds": (lambda net: net.norm.register_forward_hook(lambda m, a, o: o + 1), "something else than 0"),
    "a norm with a ReLU": (lambda net: setattr(net, "norm", strangers.ActivatedNorm(8)), None),
    "a parameter for each channel": (lambda net: setattr(net, "middle", nn.PReLU(8)), None),
    "a norm of instances": (
        lambda net: setattr(net, "middle", nn.InstanceNorm2d(8, affine=True)),
        "something else than 0",
    ),
    "a norm of instances without γ": (lambda net: setattr(net, "middle", nn.InstanceNorm2d(8)), None),
    "no β": (lambda net: net.norm.register_parameter("bias", None), None),
    "no γ": (lambda net: net.norm.register_parameter("weight", None), ""),
    "a list of parameters": (lambda net: in_a_list(net), "mul"),
}


class Scaled:
    """Has a parameter that no module registers."""

    def __init__(self, several: list[Tensor]) -> None:
        self.several = several

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.several[0]


def in_a_list(net: Any) -> None:
    net.scale = nn.Parameter(torch.randn(8, 1, 1))
    net.several = [net.scale]
    net.middle = Scaled(net.several)


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_not_what_they_seem(name: str) -> None:
    change, expected = CHANGES[name]

    def make() -> nn.Module:
        net = Net()
        change(net)
        return net

    net = seeded(make)
    if expected is None:
        assert len(check(net, 0.5, images(), [images(3, 5)])["norm"]) == 4
        return
    plan = syncbn.plan_prune(net, 0.5, images())
    assert all(expected in reason for step in plan for reason in step.held.values())
    assert all(step.removed == () for step in plan)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(lambda x: x, norm=lambda c: nn.GroupNorm(2, c)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)),
        lambda: nn.Sequential(
            nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1)
        ),  # Torch-Pruning #179, nni #5736
    ],
)
def test_nothing_to_remove(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="no channel can be removed"):
        syncbn.prune(seeded(make), 0.5, images())


def test_one_channel_of_each_layer_stays() -> None:
    """Torch-Pruning #8, network-slimming #50: layers without channels."""
    net = seeded(strangers.resnet18)
    for norm in norms_of(net).values():
        norm.weight.data.uniform_(1e-6, 1e-5)
    pruned = syncbn.prune(net, 0.999, images())
    assert min(norm.num_features for norm in norms_of(pruned).values()) == 1
    results(pruned, images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(value: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net[1].weight.data[2] = value
    with pytest.raises(ValueError, match="1 has scales that aren't finite"):
        syncbn.prune(net, 0.5, torch.randn(2, 3, 8, 8))
