"""Weight and spectral normalization equal torch's, are added by convert and removed by revert, and report errors."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.models.resnet import resnet18
from syncbn.norm.core.registry import has_bias
from syncbn.norm.spectral import SpectralNorm
from syncbn.norm.surgery.feeding import attach_norms
from syncbn.norm.weight import WeightNorm

NAMES = ["weight", "spectral"]
FEEDERS = [
    (nn.Linear(4, 6), (5, 4)),
    (nn.Conv1d(4, 6, 3), (5, 4, 8)),
    (nn.Conv2d(4, 6, 3, groups=2), (5, 4, 8, 7)),
    (nn.ConvTranspose2d(4, 6, 3), (5, 4, 5, 4)),
]


def torchs(name: str, feeder: nn.Module) -> nn.Module:
    """torch's own parametrization of filters, which are in dimension 1 of a transposed convolution."""
    if name == "weight":
        return parametrizations.weight_norm(feeder, dim=1 if isinstance(feeder, nn.ConvTranspose2d) else 0)
    return parametrizations.spectral_norm(feeder)


@pytest.mark.parametrize(("feeder", "shape"), FEEDERS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_training_equals_torchs(name: str, feeder: nn.Module, shape: tuple[int, ...]) -> None:
    ours = nn.Sequential(copy.deepcopy(feeder), syncbn.norm_layer(name)(6)).double()
    theirs = copy.deepcopy(feeder).double()
    torch.manual_seed(0)
    ours[1].attach(ours[0])
    torch.manual_seed(0)  # of the first singular vectors
    torchs(name, theirs)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (ours[0], theirs)]
    for step in range(4):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        outputs = ours(x), theirs(x)
        torch.testing.assert_close(*outputs)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            output.square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours[0].state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), ours(x), rtol=0, atol=0)


@pytest.mark.parametrize(("feeder", "shape"), FEEDERS, ids=lambda value: type(value).__name__)
def test_what_the_names_say(feeder: nn.Module, shape: tuple[int, ...]) -> None:
    """Filters of length g; a largest singular value of 1."""
    transposed = isinstance(feeder, nn.ConvTranspose2d)
    weighted, spectral = copy.deepcopy(feeder), copy.deepcopy(feeder)
    WeightNorm(6).attach(weighted)
    weighted.parametrizations.weight.original0.data.fill_(3.0)
    SpectralNorm(6, n_power_iterations=50).attach(spectral)
    spectral(torch.randn(shape))
    for layer, measure, expected in ((weighted, "norm", 3.0), (spectral, "svd", 1.0)):
        matrix = (layer.weight.transpose(0, 1) if transposed else layer.weight).flatten(1)
        lengths = matrix.norm(dim=1) if measure == "norm" else torch.linalg.svdvals(matrix)[:1]
        torch.testing.assert_close(lengths, torch.full_like(lengths, expected), rtol=1e-3, atol=0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6),
        nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


X = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_convert_and_back_is_the_same_model_to_the_last_bit(name: str) -> None:
    model = network()
    model(X)
    before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    expected = model.eval()(X)
    syncbn.convert(model.train(), name)
    assert [parametrize.is_parametrized(model[i]) for i in (0, 3, 6)] == [True] * 3
    assert model[1].bias is parameters["1.bias"], "a convolution without a bias keeps one"
    model(X)
    syncbn.revert(model)
    assert not any(map(parametrize.is_parametrized, model))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert list(model.state_dict()) == list(before)
    assert all(p is parameters[key] for key, p in model.named_parameters())
    torch.testing.assert_close(model.eval()(X), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_made_before_goes_on_working(name: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    syncbn.convert(model, name)
    weights = [model[i].weight.clone() for i in (0, 3, 6)]
    model(X).square().sum().backward()
    optimizer.step()
    trained = [model[i].weight.detach().clone() for i in (0, 3, 6)]
    assert not any(torch.allclose(a, b) for a, b in zip(weights, trained, strict=True))
    if name == "weight":
        syncbn.revert(model)
        for i, weight in zip((0, 3, 6), trained, strict=True):
            torch.testing.assert_close(model[i].weight, weight)


def test_spectral_gives_the_weight_back_that_it_divides() -> None:
    conv, norm = nn.Conv2d(1, 4, 3), SpectralNorm(4)
    weight = conv.weight
    norm.attach(conv)
    conv.parametrizations.weight.original.data.mul_(2.0)
    norm.detach()
    assert conv.weight is weight
    norm.attach(conv)
    normalized = conv.eval().weight.clone()
    parametrize.remove_parametrizations(conv, "weight")  # the docstring's way to keep W / σ
    torch.testing.assert_close(conv.weight, normalized)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_attaches_its_own(name: str) -> None:
    net = resnet18(name, num_classes=3, in_channels=1, stem="cifar", width=4)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 20
    assert all(parametrize.is_parametrized(conv, "weight") and conv.bias is None for conv in convs)
    net(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_bias() -> None:
    assert has_bias(syncbn.norm_layer("weight"), 4)
    without = syncbn.norm_layer("spectral", bias=False)
    assert not has_bias(without, 4)
    assert resnet18(without, width=4).conv1.bias is not None
    layer, x = WeightNorm(4).eval(), torch.randn(2, 4, 3)
    layer.bias.data.copy_(torch.arange(4.0))
    torch.testing.assert_close(layer(x), x + torch.arange(4.0)[:, None])
    assert layer(x.half()).dtype == torch.half
    assert without(4).eval()(x) is x


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_without_its_convolution_does_not_train(name: str) -> None:
    layer = syncbn.norm_layer(name)(4)
    with pytest.raises(ValueError, match=r"which it doesn't know: call norm.attach\(conv\), or .*attach_norms"):
        layer(torch.randn(2, 4))
    model = nn.Sequential(nn.Linear(3, 4), layer)
    attach_norms(model)
    model(torch.randn(2, 3))
    layer.detach()
    with pytest.raises(ValueError, match="which it doesn't know"):
        model(torch.randn(2, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("feeder", "error", "message"),
    [
        (nn.ReLU(), TypeError, "attach takes the layer that feeds this one .* got ReLU"),
        (nn.Linear(4, 5), ValueError, "normalizes 4 channels, but Linear.* returns 5"),
        (parametrizations.weight_norm(nn.Linear(3, 4)), ValueError, "parametrized already"),
    ],
)
def test_wrong_feeders(name: str, feeder: nn.Module, error: type[Exception], message: str) -> None:
    layer = syncbn.norm_layer(name)(4)
    with pytest.raises(error, match=message):
        layer.attach(feeder)
    assert not layer.is_attached


def test_a_convolution_of_two_norms_is_refused_and_the_model_left_as_it_was() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
            self.shared, self.left, self.right = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.shared(self.norm(self.first(x)))
            return self.left(y) + self.right(y)

    model = Forked()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="a layer that feeds two norms is normalized once, so exclude one of them"):
        syncbn.convert(model, "weight")
    torch.testing.assert_close(model.state_dict(), before)
    assert type(model.left) is type(model.right) is nn.BatchNorm1d
    syncbn.convert(model, "weight", exclude="right")
    assert model.left.is_attached


@pytest.mark.parametrize("name", NAMES)
def test_copies_keep_their_own_convolution(name: str) -> None:
    model = syncbn.convert(network(), name)
    twin = copy.deepcopy(model)
    syncbn.revert(twin)
    assert not any(map(parametrize.is_parametrized, twin))
    assert all(parametrize.is_parametrized(model[i]) for i in (0, 3, 6))
    alone = pickle.loads(pickle.dumps(model[1]))
    assert not alone.is_attached


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_repeated_forward_pass_has_the_same_weights(reentrant: bool) -> None:
    plain, repeated = (syncbn.convert(network(), "spectral") for _ in range(2))
    repeated.load_state_dict(plain.state_dict())
    for _ in range(3):
        plain(X).square().sum().backward()
        checkpoint(repeated, X.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(repeated.state_dict(), plain.state_dict(), rtol=0, atol=0)
    for (key, a), (_, b) in zip(plain.named_parameters(), repeated.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="n_power_iterations must be at least 1, got 0; 1 is the usual value"):
        syncbn.norm_layer("spectral", n_power_iterations=0)(4)
    options: dict[str, Any] = {"eps": 1e-5}
    with pytest.raises(ValueError, match="norm 'weight' has no option 'eps'; allowed: bias"):
        syncbn.norm_layer("weight", **options)
