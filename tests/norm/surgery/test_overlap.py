"""Models whose norms overlap: what converts, copies, saves and takes them apart finds what it would find without."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import syncbn
from syncbn.models.cnn import CNN
from syncbn.models.resnet import resnet18
from syncbn.norm.core import compat
from syncbn.norm.fusion.order import PLACE, HidesMessages
from syncbn.norm.surgery.overlap import overlap_messages
from tests.norm.fusion.overlap_steps import Net, grads, images, make, step, watched
from tests.ranks import Ranks


def overlapped(model: nn.Module) -> list[str]:
    """The layers that have a place in an order."""
    return [name for name, module in model.named_modules() if isinstance(module, HidesMessages)]


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Net(nn.BatchNorm2d)


LAYERS = [
    *("stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.0.downsample.0"),
    *("blocks.1.conv1", "blocks.1.conv2", "blocks.1.downsample.0", "fc"),
]


def test_convert_and_revert() -> None:
    model = plain()
    before = [type(module) for module in model.modules()]
    text, state = repr(model), model.state_dict()
    assert syncbn.convert(model, "sync", overlap=True) is model
    assert overlapped(model) == LAYERS
    assert all(isinstance(model.get_submodule(name), nn.Conv2d | nn.Linear) for name in LAYERS)
    assert model.state_dict().keys() == state.keys()
    syncbn.revert(model)
    assert [type(module) for module in model.modules()] == before
    assert repr(model) == text
    assert not any(PLACE in vars(module) for module in model.modules())


def test_another_conversion_takes_it_off() -> None:
    for name, options in (("group", {"groups": 1}), ("sync", {"overlap": False})):
        model = syncbn.convert(plain(), "sync", overlap=True)
        syncbn.convert(model, name, **options)
        assert overlapped(model) == []


@pytest.mark.parametrize("build", [resnet18, CNN])
def test_models_of_the_package(build: Callable[..., nn.Module]) -> None:
    assert overlapped(build(norm=syncbn.norm_layer("sync", overlap=True)))
    assert not overlapped(build(norm="sync"))


def first_step_on_rank() -> int:
    model = syncbn.convert(plain(), "sync", overlap=True, example_input=torch.zeros(1, 3, 8, 8))
    with watched() as events:
        step(model, 0)
    return events.hidden


@pytest.mark.distributed
def test_with_an_example_the_first_step_overlaps(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(first_step_on_rank) == [6, 6]


def _pickled(model: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(model))
    return loaded


def _saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {"deepcopy": copy.deepcopy, "pickle": _pickled, "save": _saved}


def copies_on_rank(name: str) -> None:
    original, reference = make(True), make(False)
    step(original, 0)
    step(reference, 0)
    model = COPIES[name](original)
    with torch.no_grad():
        for p in original.parameters():
            p.zero_()  # the copy has its own
    with watched() as events:
        found = [*step(model, 1), *step(model, 2)]
    assert events.hidden > 0
    with watched():  # which has the same kernels chosen
        targets = [*step(reference, 1), *step(reference, 2)]
    for got, target in zip(found, targets, strict=True):
        assert torch.equal(got, target)
    places = {id(vars(module)[PLACE].order) for module in model.modules() if PLACE in vars(module)}
    assert len(places) == 1
    assert places != {id(vars(original.stem)[PLACE].order)}


@pytest.mark.distributed
@pytest.mark.parametrize("name", COPIES)
def test_copies_overlap_by_themselves(ranks: Callable[[int], Ranks], name: str) -> None:
    ranks(2).run(copies_on_rank, name)


def test_a_shallow_copy_and_a_replica_compute_with_their_own_weight() -> None:
    conv = make(True).stem
    assert isinstance(conv, nn.Conv2d)
    x = images(0)
    twin = copy.copy(conv)
    twin._parameters = dict(conv._parameters)
    twin.weight = nn.Parameter(2 * conv.weight.detach())
    torch.testing.assert_close(twin(x), F.conv2d(x, 2 * conv.weight, conv.bias, padding=1), rtol=0, atol=0)
    replica = conv._replicate_for_data_parallel()
    replica.weight, replica.bias = 3 * conv.weight, conv.bias
    torch.testing.assert_close(replica(x), F.conv2d(x, 3 * conv.weight, conv.bias, padding=1), rtol=0, atol=0)


def test_an_interrupt_leaves_no_mode_behind() -> None:
    class Interrupting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.convolution:
                raise KeyboardInterrupt
            return func(*args, **(kwargs or {}))

    model = make(True)
    with pytest.raises(KeyboardInterrupt), Interrupting():
        model(images(0))
    assert torch.overrides._len_torch_function_stack() == 0
    assert step(model, 0)


def test_a_group_of_one_is_left_alone() -> None:
    got, target = (step(make(overlap), 0) for overlap in (True, False))
    for a, b in zip(got, target, strict=True):
        assert torch.equal(a, b)


def test_transforms_and_forward_mode() -> None:
    model = make(True).eval()
    x = images(0)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    model.zero_grad()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    conv = make(True).train().stem
    _, tangent = torch.func.jvp(conv, (x,), (x,))
    torch.testing.assert_close(tangent, F.conv2d(x, conv.weight, padding=1))
    with torch.autograd.forward_ad.dual_level():
        y = conv(torch.autograd.forward_ad.make_dual(x, x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, tangent)


def test_exports() -> None:
    model = make(True).eval()
    x = images(0)
    target = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), target)
    with warnings.catch_warnings(action="ignore"):
        torch.testing.assert_close(torch.jit.trace(model, x)(x), target)
    reverted = syncbn.revert(syncbn.convert(plain().eval(), "sync", overlap=True))
    with warnings.catch_warnings(action="ignore"):
        torch.testing.assert_close(torch.jit.script(reverted)(x), plain().eval()(x))


def test_fuse_and_prune() -> None:
    model = syncbn.convert(plain(), "sync", overlap=True).eval()
    x = images(0)
    fused = syncbn.fuse(model, example_input=x)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    pruned = syncbn.prune(model, 0.5, x)
    assert pruned(x).shape == (4, 5)


def test_layers_of_their_own_kind() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)

    for kind in (Standardized, Same):
        results = []
        for overlap in (True, False):
            model = make(overlap, lambda norm, kind=kind: nn.Sequential(nn.Conv2d(3, 4, 1), norm(4), kind(4, 2, 3)))
            assert isinstance(model[2], kind)
            assert compat.runs_own_code(model[2])
            assert not compat.runs_own_code(model[0])
            results.append(step(model, 0))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_a_lazy_layer_is_left_out() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), syncbn.SyncBatchNorm(4, overlap=True), nn.Conv2d(4, 2, 1))
    overlap_messages(model)
    assert overlapped(model) == ["2"]
    assert grads(model) == []
    model(images(0)).sum().backward()
    assert len(grads(model)) == 6


def changed_in_place_on_rank() -> str:
    class Halving(torch.autograd.Function):
        """The identity, whose backward pass writes into the gradient that it is given."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return dy.mul_(0.5)

    class Both(nn.Module):
        def __init__(self, norm: Any) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), norm(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.first(x))
            return Halving.apply(y) + self.last(y)

    model = make(True, Both)
    step(model, 0)
    try:
        step(model, 1)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_a_gradient_that_is_written_to_too_early_is_told(ranks: Callable[[int], Ranks]) -> None:
    for message in ranks(2).run(changed_in_place_on_rank):
        assert "changed in place in the backward pass" in message
