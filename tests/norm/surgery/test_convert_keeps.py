"""What a layer has beyond its class stays through `convert` and `revert`: state of hooks, masks, attributes."""

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import Tensor, nn

import syncbn

X = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
# Norms with γ and β of their own, to which any state can go.
NORMS = ["sync", "batch", "adaptive", "ghost", "batch_renorm", "group", "rms", "filter_response", "switchable"]


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(4)
    nn.init.uniform_(layer.weight)
    layer(X * 2 + 1)
    return layer


def copied(module: nn.Module) -> Any:
    return copy.deepcopy(module)


def pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("name", NORMS)
def test_a_pruning_mask(name: str) -> None:
    model = nn.Sequential(norm())
    masks.l1_unstructured(model[0], "weight", amount=2)
    mask, kept = model[0].weight_mask, model[0].weight_orig
    keys = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    syncbn.convert(model, name)
    assert model[0].weight_mask is mask
    assert model[0].weight_orig is kept
    assert "weight" not in model[0]._parameters
    for _ in range(2):
        optimizer.zero_grad()
        model(X).pow(3).sum().backward()
        optimizer.step()
    assert not kept.grad[mask == 0].any()
    assert kept.grad[mask == 1].any()
    model(X)
    torch.testing.assert_close(model[0].weight.detach(), (kept * mask).detach())
    syncbn.revert(model)
    assert list(model.state_dict()) == keys
    assert model[0].weight_mask is mask
    assert masks.is_pruned(model)
    model(X)
    masks.remove(model[0], "weight")
    torch.testing.assert_close(model[0].weight, kept * mask)


def test_a_masked_layer_computes_what_torch_s_does() -> None:
    plain, model = norm(), norm()
    for layer in (plain, model):
        masks.custom_from_mask(layer, "bias", torch.tensor([0.0, 1.0, 1.0, 0.0]))
        layer.bias_orig.data.fill_(3.0)
        masks.custom_from_mask(layer, "weight", torch.tensor([1.0, 0.0, 1.0, 1.0]))
    model = syncbn.convert(model, "sync")
    assert list(model.state_dict()) == list(plain.state_dict())
    for x in (X, X + 1):
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.eval()(X), plain.eval()(X))
    model.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_mask_that_is_made_permanent_while_converted(when: str) -> None:
    """And one that is put on then."""
    model = nn.Sequential(norm())
    if when == "before":
        masks.l1_unstructured(model[0], "weight", amount=2)
    syncbn.convert(model, "sync")
    if when == "before":
        masks.remove(model[0], "weight")
        expected = ["0.bias", "0.weight"]
    else:
        masks.l1_unstructured(model[0], "weight", amount=2)
        expected = ["0.bias", "0.weight_orig"]
    model(X)
    numbers = model[0].weight.detach().clone()
    syncbn.revert(model)
    assert [name for name, _ in model.named_parameters()] == expected
    assert ("weight_mask" in model[0]._buffers) == (when == "after")
    model(X)
    torch.testing.assert_close(model[0].weight.detach(), numbers)
    assert (numbers == 0).sum() == 2


def test_a_norm_without_the_computed_parameter_is_refused() -> None:
    model = nn.Sequential(norm())
    masks.l1_unstructured(model[0], "weight", amount=2)
    with pytest.raises(ValueError, match=r"can't convert 0 to 'frozen': a hook computes its weight.*prune\.remove"):
        syncbn.convert(model, "frozen")
    assert type(model[0]) is nn.BatchNorm2d
    masks.remove(model[0], "weight")
    assert type(syncbn.convert(model, "frozen")[0]).__name__ == "FrozenBatchNorm"


class Calls:
    """A hook with state, on the layer and beside it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, layer: Any, *_: Any) -> None:
        self.count += 1
        layer.seen += 1
        layer.last = layer.seen


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kind", ["buffer", "attribute", "hidden buffer"])
def test_a_hook_with_state(name: str, kind: str) -> None:
    model, calls = nn.Sequential(norm()), Calls()
    if kind == "attribute":
        model[0].seen = 0
    else:
        model[0].register_buffer("seen", torch.zeros(()), persistent=kind == "buffer")
    handle = model[0].register_forward_hook(calls)
    keys = list(model.state_dict())
    model(X)
    syncbn.convert(model, name)
    model(X)
    assert calls.count == model[0].seen == model[0].last == 2
    assert ("0.seen" in model.state_dict()) == (kind == "buffer")
    syncbn.revert(model)
    model(X)
    assert calls.count == model[0].seen == 3
    assert list(model.state_dict()) == keys
    handle.remove()
    model(X)
    assert calls.count == 3


def test_attributes_parameters_and_children() -> None:
    class Scaled(nn.BatchNorm2d):
        """A subclass with marks of its own, and no method."""

        lr_mult = 10.0
        group_name = "norms"

        def __init__(self, num_features: int) -> None:
            super().__init__(num_features)
            self.decay = 0.0
            self.extra = nn.Parameter(torch.ones(2))
            self.helper = nn.Linear(2, 2)

    layer = Scaled(4)
    extra, helper = layer.extra, layer.helper
    model = syncbn.convert(nn.Sequential(layer), "sync")
    assert (model[0].lr_mult, model[0].group_name, model[0].decay) == (10.0, "norms", 0.0)
    assert model[0].extra is extra
    assert model[0].helper is helper
    assert list(model.state_dict()) == [f"0.{key}" for key in Scaled(4).state_dict()]
    model[0].decay, model[0].note = 0.5, "new"
    del model[0].extra
    syncbn.revert(model)
    assert model[0] is layer
    assert (layer.decay, layer.note) == (0.5, "new")
    assert not hasattr(layer, "extra")


def test_a_name_that_means_something_else_is_refused() -> None:
    model = nn.Sequential(norm(), norm())
    model[1].window = 5
    with pytest.raises(ValueError, match="can't convert 1 to 'cross_iteration': its 'window' is another thing"):
        syncbn.convert(model, "cross_iteration")
    assert all(type(layer) is nn.BatchNorm2d for layer in model)
    assert syncbn.convert(model, "sync")[1].window == 5


def test_extra_buffers_follow_the_model_into_half_precision() -> None:
    model = norm()
    model.register_buffer("extra", torch.ones(3))
    model = syncbn.convert(model, "sync").half()
    assert model.extra.dtype == torch.float16
    assert model.running_mean.dtype == torch.float32


@pytest.mark.parametrize("copier", [copied, pickled])
def test_copies_keep_all_of_it(copier: Callable[[nn.Module], Any]) -> None:
    model = norm()
    model.register_buffer("seen", torch.zeros(()), persistent=False)
    model.lr_mult = 2.0
    twin = copier(syncbn.convert(nn.Sequential(model), "sync"))
    assert twin[0].lr_mult == 2.0
    twin[0].seen += 1
    assert syncbn.revert(twin)[0].seen == 1
    assert model.seen == 0
    assert "0.seen" not in twin.state_dict()


def test_hooks_of_loading_know_the_layer_that_is_loaded() -> None:
    """torch gives them a weak reference to the module they were registered on."""
    model, told = nn.Sequential(norm()), list[Any]()
    model[0].register_load_state_dict_pre_hook(lambda module, *_: told.append(module))
    state = copy.deepcopy(model.state_dict())
    syncbn.convert(model, "sync")
    model.load_state_dict(state)
    syncbn.convert(model, "adaptive")
    model.load_state_dict(state, strict=False)
    syncbn.revert(model)
    model.load_state_dict(state)
    assert [type(module).__name__ for module in told] == ["SyncBatchNorm", "AdaptiveBatchNorm", "BatchNorm2d"]


def test_a_refused_conversion_leaves_hooks_where_they_were() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model, told = nn.Sequential(norm(), Doubled(4)), list[Any]()
    model[0].register_load_state_dict_pre_hook(lambda module, *_: told.append(module))
    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        syncbn.convert(model, "sync")
    model.load_state_dict(model.state_dict())
    assert told == [model[0]]


@pytest.mark.parametrize("setting", [{"momentum": 0.5}, {"eps": 0.1}, {"momentum": None}])
def test_settings_that_changed_while_converted_are_handed_back(setting: dict[str, Any]) -> None:
    (name, value), *_ = setting.items()
    model = syncbn.convert(nn.Sequential(norm()), "sync", momentum=0.3)
    setattr(model[0], name, value)
    syncbn.revert(model)
    assert getattr(model[0], name) == value
    other = "eps" if name == "momentum" else "momentum"
    assert getattr(model[0], other) == getattr(nn.BatchNorm2d(4), other)


def test_the_old_layer_is_not_kept_alive_by_a_model_that_was_given_up() -> None:
    model = nn.Sequential(norm())
    reference = weakref.ref(syncbn.convert(model, "sync")[0])
    syncbn.revert(model)
    assert reference() is None


class WithTrain(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Any:
        return super().train(False)


class WithLoad(nn.BatchNorm2d):
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)


class WithReset(nn.BatchNorm2d):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class WithProperty(nn.BatchNorm2d):
    @property
    def is_quiet(self) -> bool:
        return True


class Below(WithReset):
    pass


def with_own_train() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.train = lambda mode=True: layer
    return layer


def compiled_in_place() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.compile(backend="eager")
    return layer


def with_bound_method() -> nn.Module:
    layer: Any = nn.BatchNorm2d(4)
    layer.normalize = layer.forward
    return layer


def with_qconfig() -> nn.Module:
    layer: Any = nn.BatchNorm2d(4)
    layer.qconfig = torch.ao.quantization.get_default_qat_qconfig()
    return layer


def with_observer() -> nn.Module:
    layer: Any = nn.BatchNorm2d(4)
    layer.activation_post_process = torch.ao.quantization.MinMaxObserver()
    return layer


OWN = [
    (lambda: WithTrain(4), "WithTrain has train,"),
    (lambda: WithLoad(4), "WithLoad has _load_from_state_dict,"),
    (lambda: WithReset(4), "WithReset has reset_parameters,"),
    (lambda: Below(4), "Below has reset_parameters,"),
    (lambda: WithProperty(4), "WithProperty has is_quiet,"),
    (with_own_train, "BatchNorm2d has train, set on the layer,"),
    (compiled_in_place, r"BatchNorm2d has compile\(\), called on the layer,"),
    (with_bound_method, "BatchNorm2d has normalize, set on the layer,"),
    (with_qconfig, "BatchNorm2d has qconfig, of quantization,"),
    (with_observer, "BatchNorm2d has the observer activation_post_process,"),
]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*", "ignore:.*quant_min.*")
@pytest.mark.parametrize(("build", "message"), OWN)
@pytest.mark.parametrize("name", ["sync", "group"])
def test_behaviour_of_its_own_is_refused_by_name(build: Callable[[], nn.Module], message: str, name: str) -> None:
    model = nn.ModuleDict({"first": norm(), "second": build()})
    with pytest.raises(ValueError, match=f"can't convert second to '{name}': {message}") as refusal:
        syncbn.convert(model, name)
    assert "exclude=" in str(refusal.value)
    assert type(model["first"]) is nn.BatchNorm2d
    assert isinstance(syncbn.convert(model, name, exclude="second")["first"], nn.Module)


def test_every_layer_that_is_refused_is_named_at_once() -> None:
    model = nn.Sequential(WithTrain(4), nn.BatchNorm2d(6), WithReset(4), nn.BatchNorm2d(9), nn.BatchNorm2d(9))
    with pytest.raises(ValueError, match="can't convert to 'group'") as refusal:
        syncbn.convert(model, "group", groups=4)
    told = str(refusal.value)
    for part in ("0: WithTrain", "1: groups must divide the 6", "2: WithReset", "3, 4: groups must divide the 9"):
        assert part in told


@pytest.mark.parametrize("channels", [1, 3, 32, 33, 48, 72, 97, 960])
def test_groups_are_found_for_any_number_of_channels(channels: int) -> None:
    layer = syncbn.convert(nn.BatchNorm2d(channels), "group")
    groups = max(number for number in range(1, 33) if channels % number == 0)
    x = torch.randn(2, channels, 4, 4)
    torch.testing.assert_close(layer(x), nn.functional.group_norm(x, groups))


def test_a_state_dict_of_the_masked_model_loads_in_the_converted_one() -> None:
    source, target = nn.Sequential(norm()), nn.Sequential(norm())
    for model in (source, target):
        masks.l1_unstructured(model[0], "weight", amount=1)
    syncbn.convert(target, "sync")
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(target.eval()(X), source.eval()(X))


def test_a_layer_without_statistics_that_gets_some_is_said() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.warns(UserWarning, match="0 has no running statistics and evaluates by its batch, and 'batch_renorm'"):
        syncbn.convert(model, "batch_renorm")
    assert syncbn.revert(model)[0].running_mean is None


def pruned_by_hand(layer: Any, keep: list[int], says: bool) -> None:
    """As scripts slim a network: torch's layer doesn't read its `num_features`, which some leave as it was."""
    for name in ("weight", "bias"):
        setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[keep]))
    for name in ("running_mean", "running_var"):
        setattr(layer, name, getattr(layer, name)[keep])
    if says:
        layer.num_features = len(keep)


@pytest.mark.parametrize("name", ["sync", "batch", "adaptive", "batch_renorm", "frozen"])
@pytest.mark.parametrize("says", [True, False])
def test_a_layer_that_was_pruned_by_hand(name: str, says: bool) -> None:
    model = nn.Sequential(norm()).eval()
    pruned_by_hand(model[0], [0, 2, 3], says)
    expected = model(X[:, [0, 2, 3]])
    syncbn.convert(model, name)
    assert model[0].num_features == 3
    torch.testing.assert_close(model(X[:, [0, 2, 3]]), expected)
    torch.testing.assert_close(syncbn.revert(model)(X[:, [0, 2, 3]]), expected)


@pytest.mark.parametrize("name", ["sync", "batch"])
def test_a_layer_that_is_pruned_by_hand_while_converted(name: str) -> None:
    model = syncbn.convert(nn.Sequential(norm()), name).eval()
    pruned_by_hand(model[0], [0, 2, 3], says=True)
    expected = model(X[:, [0, 2, 3]])
    syncbn.revert(model)
    assert model[0].num_features == 3
    torch.testing.assert_close(model(X[:, [0, 2, 3]]), expected)
