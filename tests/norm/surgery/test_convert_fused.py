"""`convert(model, "sync", fuse_activation=True)`: which norms are fused, and that results don't change."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.models.resnet import resnet18
from syncbn.norm.fusion.deferred import Deferred
from syncbn.norm.surgery.fusible import activations_after


class Network(nn.Module):
    """A model of two norms, each after a convolution; subclasses define what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act = nn.LeakyReLU(0.2)

    def norm1(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))

    def norm2(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(x))


class Residual(Network):
    """As in torchvision: one in-place ReLU module for all, and an in-place sum."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x = self.relu(self.norm1(x))
        out = self.norm2(x)
        out += identity
        return self.relu(out)


class ShortcutFirst(Network):
    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm1(x), negative_slope=0.3)
        return torch.add(x, self.norm2(x)).relu()


class TwoNormsSummed(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm1(x) + self.norm2(self.conv1(x)))


class UsedTwice(Network):
    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        t = self.norm2(F.relu(z)) + z
        return F.relu(t) + t


class OtherActivations(Network):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm2(F.gelu(self.norm1(x))))


class NoActivation(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.norm1(x))


class OtherSums(Network):
    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(torch.add(self.norm1(x), self.conv1(x), alpha=2))
        return F.relu(self.norm2(z).mean(0) + 1)


class Shared(Network):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(x))
        return F.relu(self.bn2(self.conv2(F.relu(self.norm2(x)))))


class BranchOnValues(Network):
    """Can't be traced without an input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            x = x[:100]
        return F.relu(self.norm2(F.relu_(self.norm1(x))))


# Result of `activations_after` for bn1 and bn2: a slope, or a part of the reason.
CASES: list[tuple[type[Network], Any, Any]] = [
    (Residual, 0.0, 0.0),
    (ShortcutFirst, 0.3, 0.0),
    (TwoNormsSummed, 0.2, 0.2),
    (UsedTwice, "used 2 times", "used 2 times"),
    (OtherActivations, "goes into gelu", "goes into relu6"),
    (NoActivation, "goes into", "model returns"),
    (OtherSums, "goes into add", "goes into mean"),
    (Shared, 0.0, "called 2 times"),
]


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Results of one training step and an evaluation."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.eval()
    with torch.no_grad():
        evaluated = model(x)
    model.train()
    return [y.detach(), *grads, evaluated, *(buffer.clone() for buffer in model.buffers())]


def fresh(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


@pytest.mark.parametrize("by_example", [False, True])
@pytest.mark.parametrize(("kind", "first", "second"), CASES)
def test_what_is_fused(kind: Callable[[], Any], first: Any, second: Any, by_example: bool) -> None:
    model = fresh(kind)
    example = torch.randn(2, 3, 5, 5, dtype=torch.float64) if by_example else None
    found = activations_after(model, [model.bn1, model.bn2], example)
    for layer, expected in ((model.bn1, first), (model.bn2, second)):
        if isinstance(expected, float):
            assert found[layer] == expected
        else:
            assert isinstance(found[layer], str)
            assert expected in found[layer].replace("BatchNorm2d", "goes into BatchNorm2d")
    converted = syncbn.convert(model, "sync", fuse_activation=True, example_input=example)
    for layer, expected in ((converted.bn1, first), (converted.bn2, second)):
        assert layer.fuse_activation == isinstance(expected, float)


@pytest.mark.parametrize("memory", ["keep", "recompute", "invert"])
@pytest.mark.parametrize("kind", [kind for kind, *_ in CASES] + [BranchOnValues])
def test_a_converted_model_computes_the_same(kind: Callable[[], Any], memory: str) -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    model = fresh(kind)
    keys = list(model.state_dict())
    expected = results(copy.deepcopy(model), x)
    options: dict[str, Any] = {"fuse_activation": True, "memory": memory, "example_input": x[:1]}
    if memory == "invert" and kind is not TwoNormsSummed:
        after = activations_after(model, [model.bn1, model.bn2], x[:1])
        if 0 in after.values():
            with pytest.raises(ValueError, match=r"needs a LeakyReLU after each layer, and a ReLU comes after bn"):
                syncbn.convert(model, "sync", **options)
            assert type(model.bn1) is nn.BatchNorm2d
            return
    converted = syncbn.convert(model, "sync", **options)
    assert converted is model
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(results(model, x), expected, rtol=1e-9, atol=1e-9)
    assert type(syncbn.revert(model).bn1) is nn.BatchNorm2d
    model.load_state_dict(model.state_dict())


def test_revert_gives_back_the_very_layers() -> None:
    model = fresh(Residual)
    before = dict(model.named_modules())
    parameters = list(model.parameters())
    syncbn.convert(model, "sync", fuse_activation=True, memory="recompute")
    model(torch.randn(2, 3, 5, 5, dtype=torch.float64)).sum().backward()
    statistics = [buffer.clone() for buffer in model.buffers()]
    syncbn.revert(model)
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(list(model.buffers()), statistics, rtol=0, atol=0)


def test_hooks_keep_a_layer_unfused() -> None:
    model = fresh(TwoNormsSummed)
    model.bn1.register_forward_hook(lambda module, args, output: None)
    found = activations_after(model, [model.bn1, model.bn2])
    assert found == {model.bn1: "it has hooks that see its output", model.bn2: 0.2}
    model.act.register_forward_pre_hook(lambda module, args: None)
    assert activations_after(model, [model.bn2]) == {model.bn2: "the LeakyReLU after it has hooks"}


def test_hooks_that_come_later_see_what_they_would_see() -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    seen: list[Tensor] = []
    for convert in (lambda model: model, lambda model: syncbn.convert(model, "sync", fuse_activation=True)):
        model = convert(fresh(TwoNormsSummed))
        for layer in (model.bn1, model.act):
            layer.register_forward_hook(lambda module, args, output: seen.append(args[0] + 0))
            layer.register_forward_hook(lambda module, args, output: seen.append(output + 0))
        model(x)
    assert not any(isinstance(tensor, Deferred) for tensor in seen)
    torch.testing.assert_close(seen[:4], seen[4:])


def test_a_model_that_needs_an_example_says_so() -> None:
    with pytest.raises(ValueError, match=r"can't trace this model.*example_input"):
        syncbn.convert(fresh(BranchOnValues), "sync", fuse_activation=True)


def test_only_sync_has_the_option() -> None:
    with pytest.raises(ValueError, match="norm 'group' has no option 'fuse_activation'"):
        syncbn.convert(fresh(Residual), "group", fuse_activation=True)


def test_a_scale_near_zero_is_not_inverted() -> None:
    model = fresh(TwoNormsSummed)
    model.bn2.weight.data[1] = -1e-4
    with pytest.raises(ValueError, match=r"can't convert bn2.*smallest \|γ\| here is 0.0001"):
        syncbn.convert(model, "sync", fuse_activation=True, memory="invert")
    assert type(model.bn1) is nn.BatchNorm2d


def test_the_whole_of_a_resnet_is_fused() -> None:
    model = syncbn.convert(resnet18(stem="cifar", width=4), "sync", fuse_activation=True, memory="recompute")
    norms = [module for module in model.modules() if isinstance(module, syncbn.SyncBatchNorm)]
    assert len(norms) == 20
    assert all(norm.fuse_activation and norm.memory == "recompute" for norm in norms)


def test_a_converted_model_is_copied_and_pickled() -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    model = syncbn.convert(fresh(Residual), "sync", fuse_activation=True, memory="recompute")
    expected = results(copy.deepcopy(model), x)
    torch.testing.assert_close(results(pickle.loads(pickle.dumps(model)), x), expected)
    assert "fuse_activation=True, memory='recompute'" in repr(model.bn1)
