"""`convert` of batch norms that others wrote: subclasses, activations, wholly other classes, graphs."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import syncbn
from syncbn.norm.surgery.adapters import _ADAPTERS, Adapter, register_adapter


class Refined(nn.BatchNorm2d):
    """A subclass without a forward of its own."""


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_subclasses() -> None:
    assert type(syncbn.revert(syncbn.convert(nn.Sequential(Refined(3)), "sync"))[0]) is Refined
    with pytest.raises(ValueError, match="can't convert 0 to 'sync': Doubling has a forward of its own"):
        syncbn.convert(nn.Sequential(Doubling(3)), "sync")
    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x
    with pytest.raises(ValueError, match="forward of its own"):
        syncbn.convert(patched, "sync")


def test_a_registered_adapter_admits_a_subclass() -> None:
    register_adapter(Adapter(lambda m: isinstance(m, Doubling), lambda m: {"num_features": m.num_features}))
    try:
        assert isinstance(syncbn.convert(Doubling(3), "sync"), syncbn.SyncBatchNorm)
    finally:
        _ADAPTERS.pop(0)


def test_nothing_is_touched_when_one_layer_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Doubling(3))
    with pytest.raises(ValueError, match="can't convert 1"):
        syncbn.convert(model, "sync")
    assert type(model[0]) is nn.BatchNorm2d


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's layer, as its documentation describes it."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop = nn.Identity()
        self.act = nn.LeakyReLU(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class FrozenBatchNorm2d(nn.Module):
    """torchvision's and detectron2's layer, as their documentation describes it."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 2.0), ("bias", 0.5), ("running_mean", 0.1), ("running_var", 3.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(shape) + (self.bias - self.running_mean * scale).view(shape)


@pytest.mark.parametrize("copier", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_an_activation_stays(copier: Callable[[nn.Module], nn.Module]) -> None:
    original, model = BatchNormAct2d(3), BatchNormAct2d(3)
    converted = copier(syncbn.convert(model, "sync"))
    assert isinstance(converted, syncbn.SyncBatchNorm)
    assert list(converted.state_dict()) == list(original.state_dict())
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(converted(x), original(x))
    torch.testing.assert_close(converted.eval()(x), original.eval()(x))
    for back in (
        syncbn.revert,
        lambda m: syncbn.convert(m, "torch"),
        lambda m: syncbn.revert(syncbn.convert(m, "group")),
    ):
        reverted = back(copy.deepcopy(converted))
        assert type(reverted).__name__ == "BatchNormAct2d"
        torch.testing.assert_close(reverted.eval()(x), original.eval()(x))
        assert [name for name, _ in reverted.named_modules()] == [name for name, _ in original.named_modules()]


class InPlaceABN(nn.Module):
    """A batch norm that is none of torch's classes, such as mapillary's."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return nn.functional.leaky_relu(y)


def test_a_norm_of_no_known_kind_is_said() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), InPlaceABN(3), nn.InstanceNorm2d(3, track_running_stats=True))
    with pytest.warns(UserWarning, match=r"1 \(InPlaceABN\) has running statistics.*register_adapter") as said:
        syncbn.convert(model, "sync")
    assert len(said) == 1
    with pytest.warns(UserWarning, match=r"the model \(InPlaceABN\)"):
        assert type(syncbn.convert(InPlaceABN(3), "sync")) is InPlaceABN
    syncbn.convert(model, "batch", include="*")  # which says that all are meant that are known


@pytest.mark.parametrize(
    "graph",
    [
        lambda net, x: torch.export.export(net, (x,)).module(),
        lambda net, x: torch.fx.symbolic_trace(nn.Sequential(InPlaceABN(3))),
        lambda net, x: nn.Sequential(nn.BatchNorm2d(3), torch.export.export(net, (x,)).module()),
    ],
    ids=["exported", "traced", "a part"],
)
def test_a_graph_that_normalizes_itself_is_said(graph: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    model = graph(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), torch.randn(2, 3, 4, 4))
    with pytest.warns(UserWarning, match="is a graph that calls batch_norm itself, 1 times"):
        syncbn.convert(model, "sync")


def test_a_graph_of_modules_is_converted() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    expected, x = copy.deepcopy(traced), torch.randn(2, 3, 4, 4)
    converted = syncbn.convert(traced, "sync")
    assert isinstance(converted.get_submodule("1"), syncbn.SyncBatchNorm)
    torch.testing.assert_close(converted(x), expected(x))
    assert type(syncbn.revert(converted).get_submodule("1")) is nn.BatchNorm2d


def test_a_frozen_layer_becomes_trainable_and_frozen_again() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(3, eps=0.02))
    x = torch.randn(4, 3, 5, 5)
    expected = model(x)
    syncbn.convert(model, "sync")
    assert model[0].eps == 0.02
    torch.testing.assert_close(model.eval()(x), expected)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.weight", "0.bias"]
    model[0].weight.data.fill_(4.0)
    syncbn.revert(model)
    assert type(model[0]) is FrozenBatchNorm2d
    assert list(model.parameters()) == []
    assert torch.equal(model[0].weight, torch.full((3,), 4.0))


def frozen_by(eps: float, says: bool = False, relu: bool = False) -> nn.Module:
    """A frozen layer whose forward has an eps of its own, as DETR's, or none, as maskrcnn-benchmark's."""

    class FrozenBatchNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for seed, name in enumerate(("weight", "bias", "running_mean", "running_var")):
                self.register_buffer(name, torch.rand(3, generator=torch.Generator().manual_seed(seed)) * 1e-3)
            if says:
                self.eps = 1e-5

        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight * (self.running_var + eps).rsqrt()
            y = x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)
            return y.relu() if relu else y

    return FrozenBatchNorm2d()


@pytest.mark.parametrize("name", ["sync", "frozen", "torch"])
@pytest.mark.parametrize("eps", [1e-5, 3e-4, 0.0])
@pytest.mark.filterwarnings("ignore:0 has eps=0")
def test_a_frozen_layer_that_does_not_say_its_eps(name: str, eps: float) -> None:
    model, x = nn.Sequential(frozen_by(eps)).eval(), torch.randn(4, 3, 2, 2)
    expected = model(x)
    assert syncbn.convert(model, name)[0].eps == eps
    if name == "torch" and eps == 0 and torch.__version__.startswith("2.11"):
        with pytest.raises(ValueError, match="eps must be positive"):  # torch's own layer refuses it there
            model(x)
    else:
        torch.testing.assert_close(model(x), expected)
    assert torch.equal(syncbn.revert(model)(x), expected)


@pytest.mark.parametrize(("eps", "relu"), [(1e-3, False), (1e-5, True)])
def test_a_frozen_layer_that_computes_something_else_is_refused(eps: float, relu: bool) -> None:
    with pytest.raises(ValueError, match="can't convert 0 to 'sync': FrozenBatchNorm2d computes something else"):
        syncbn.convert(nn.Sequential(frozen_by(eps, says=True, relu=relu)), "sync")


class DoublingAct(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoublingFrozen(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("layer", [DoublingAct, DoublingFrozen])
def test_what_is_derived_from_another_packages_layer_is_refused(layer: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"can't convert 0 to 'sync': {layer.__name__} has forward, which a new layer"):
        syncbn.convert(nn.Sequential(layer(3)), "sync")


def test_a_converted_layer_that_is_parametrized_since() -> None:
    model = syncbn.convert(nn.Sequential(nn.BatchNorm2d(3)), "sync")
    parametrize.register_parametrization(model[0], "weight", nn.Softplus())
    for undo in (syncbn.revert, lambda model: syncbn.convert(model, "batch")):
        with pytest.raises(ValueError, match="parametrized"):
            undo(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(syncbn.revert(model)[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("name", syncbn.available_norms())
def test_a_default_device_changes_nothing(name: str) -> None:
    options = {"decorrelated": {"group_size": 1}}.get(name, {})
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    with torch.device("meta"):
        syncbn.convert(model, name, **options)
        empty = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    syncbn.convert(empty, name, **options)
    assert not any(each.is_meta for each in (*model.parameters(), *model.buffers()))
    assert all(each.is_meta for each in (*empty.parameters(), *empty.buffers()))


@pytest.mark.parametrize("name", syncbn.available_norms())
def test_what_is_converted_in_inference_mode_is_trained_later(name: str) -> None:
    options = {"decorrelated": {"group_size": 1}}.get(name, {})
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    for step in (lambda: syncbn.convert(model, name, **options), lambda: syncbn.revert(model)):
        with torch.inference_mode():
            step()
        assert not any(each.is_inference() for each in (*model.parameters(), *model.buffers()))
        model(torch.randn(4, 2, 3, 3)).sum().backward()
