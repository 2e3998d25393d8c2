"""`convert` and `revert` lose nothing, and refuse models that they would break."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.norm.core.attachable import Attachable
from tests.ranks import Ranks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4, eps=0.01, momentum=0.3)
        self.block = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.LazyLinear(6))
        self.bn2 = nn.BatchNorm1d(6, momentum=None)
        self.bn2.bias = None  # as bias=False of torch 2.12 has it
        self.also_bn1 = self.bn1

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.block(self.also_bn1(self.conv(x))))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(4, 3, 6, 6))
    model.bn2.weight.requires_grad_(False)
    model.block[1].eval()
    return model


X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def norms(model: nn.Module) -> list[nn.Module]:
    return [model.bn1, model.block[1], model.bn2]


def test_a_converted_model_computes_the_same() -> None:
    original, converted = net(), syncbn.convert(net(), "sync")
    for _ in range(2):
        torch.testing.assert_close(converted(X), original(X))
    torch.testing.assert_close(converted.state_dict(), original.state_dict())
    assert list(converted.state_dict()) == list(original.state_dict())
    torch.testing.assert_close(converted.eval()(X), original.eval()(X))


def test_everything_is_handed_over() -> None:
    model = net()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert syncbn.convert(model, "sync") is model
    assert all(isinstance(layer, syncbn.SyncBatchNorm) for layer in norms(model))
    assert model.also_bn1 is model.bn1
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all(b is buffers[name] for name, b in model.named_buffers())
    assert [layer.training for layer in norms(model)] == [True, False, True]
    assert [(layer.eps, layer.momentum) for layer in norms(model)] == [(0.01, 0.3), (1e-5, 0.1), (1e-5, None)]
    assert model.block[1].weight is None
    assert model.bn2.bias is None
    assert not model.bn2.weight.requires_grad
    before = model.bn1.weight.clone()
    model(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.bn1.weight, before)


def test_revert_gives_the_original_layers_back_up_to_date() -> None:
    model = net()
    layers = norms(model)
    twin = copy.deepcopy(model)
    syncbn.convert(model, "sync")
    model.bn2.eval()
    for trained in (model, twin.train()):
        trained(X)
    assert syncbn.revert(model) is model
    assert all(now is then for now, then in zip(norms(model), layers, strict=True))
    assert [type(layer) for layer in norms(model)] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d]
    assert model.also_bn1 is model.bn1
    torch.testing.assert_close(model.bn1.running_mean, twin.bn1.running_mean)
    assert not model.bn2.training


def test_hooks_go_on_and_their_handles_still_remove_them() -> None:
    model, calls = net(), []
    handles = [
        model.bn1.register_forward_hook(lambda *_: calls.append("forward")),
        model.bn1.register_forward_pre_hook(lambda *_, **__: calls.append("pre"), with_kwargs=True),
        model.bn1.register_full_backward_hook(lambda *_: calls.append("backward")),
        model.bn1.register_state_dict_post_hook(lambda *_: calls.append("state")),
    ]
    syncbn.convert(model, "sync")
    model(X).sum().backward()
    model.state_dict()
    assert calls == ["pre", "forward", "backward", "state", "state"], "the shared layer's state is saved twice"
    for handle in handles:
        handle.remove()
    calls.clear()
    syncbn.revert(model)
    model(X).sum().backward()
    assert calls == []


def test_the_root_may_be_a_norm_layer() -> None:
    layer = nn.BatchNorm3d(2)
    converted = syncbn.convert(layer, "sync")
    assert isinstance(converted, syncbn.SyncBatchNorm)
    assert syncbn.revert(converted) is layer


def test_globs_choose_layers() -> None:
    model = syncbn.convert(net(), "sync", include="block.*")
    assert [type(layer).__name__ for layer in norms(model)] == ["BatchNorm2d", "SyncBatchNorm", "BatchNorm1d"]
    model = syncbn.convert(net(), "sync", exclude=["bn2"])
    assert [type(layer).__name__ for layer in norms(model)] == ["SyncBatchNorm", "SyncBatchNorm", "BatchNorm1d"]
    model = syncbn.convert(net(), "sync", exclude="also_bn1")
    assert isinstance(model.bn1, nn.BatchNorm2d), "one excluded place of a shared layer excludes it"


@pytest.mark.parametrize("glob", [{"include": "layer4.*"}, {"exclude": "conv"}])
def test_a_glob_that_matches_nothing_is_refused(glob: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"no normalization layer is named .* this model has: bn1, block\.1, bn2"):
        syncbn.convert(net(), "sync", **glob)


@pytest.mark.parametrize("name", syncbn.available_norms())
def test_every_norm_and_back(name: str) -> None:
    options = {"group": {"groups": 2}, "learnable_momentum": {"momentum": 0.2}}.get(name, {})  # bn2 has none
    model = net()
    expected = copy.deepcopy(model.state_dict())
    # (N, C) has no instances to normalize; norms with a feeder find a ReLU before block.1
    exclude = {"instance": "bn2"}.get(
        name, "block.1" if isinstance(syncbn.norm_layer(name, **options)(4), Attachable) else ()
    )
    syncbn.convert(model, name, exclude=exclude, **options)
    model(X).sum().backward()
    syncbn.revert(model)
    assert [type(layer) for layer in norms(model)] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d]
    assert list(model.state_dict()) == list(expected)


def test_converting_twice_keeps_the_first_original_and_the_latest_state() -> None:
    model = syncbn.convert(net(), "sync")
    model(X)
    mean = model.bn1.running_mean.clone()
    syncbn.convert(model, "group", groups=2)
    syncbn.revert(model)
    assert type(model.bn1) is nn.BatchNorm2d
    torch.testing.assert_close(model.bn1.running_mean, mean)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_converted_model_revert_alone(copier: Callable[[nn.Module], nn.Module]) -> None:
    model = syncbn.convert(net(), "sync")
    twin = copier(model)
    model(X)
    syncbn.revert(twin)
    assert type(twin.bn1) is nn.BatchNorm2d
    assert isinstance(model.bn1, syncbn.SyncBatchNorm)
    assert not torch.equal(twin.bn1.running_mean, model.bn1.running_mean)


def test_checkpoints_go_both_ways() -> None:
    plain, converted = net(), syncbn.convert(net(), "sync")
    converted(X)
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(plain.eval()(X), converted.eval()(X))
    converted.load_state_dict(net().state_dict())


def test_torch_sync_batch_norm_is_converted() -> None:
    model = syncbn.convert(nn.SyncBatchNorm.convert_sync_batchnorm(net()), "sync")
    assert type(syncbn.revert(model).bn1) is nn.SyncBatchNorm


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "run one batch through the model first"),
        (lambda: torch.compile(net()), r"compiled already.*torch\.compile\(syncbn\.convert"),
        (lambda: nn.Sequential(torch.compile(net())), "compiled already"),
        (lambda: nn.DataParallel(net()), r"wrapped by DataParallel.*DistributedDataParallel\(syncbn\.convert"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3)), "remove_parametrizations first"),
    ],
)
def test_refused_models(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.convert(model(), "sync")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("snyc",), "unknown norm 'snyc'; did you mean 'sync'"),
        (("group", {"groups": 3}), r"can't convert bn1, block.1 to 'group': groups must divide the 4 channels, got 3"),
        (("group", {"groups": -2}), "groups must divide"),
        (("sync", {"groups": 3}), "norm 'sync' has no option 'groups'"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    name, *options = arguments
    with pytest.raises(ValueError, match=message):
        syncbn.convert(net(), name, **(options[0] if options else {}))


def wrapped_and_converted() -> tuple[str, str]:
    ddp = DistributedDataParallel(syncbn.convert(net(), "sync"))  # DDP accepts a converted model
    ddp(X[dist.get_rank() * 2 :][:2]).sum().backward()
    try:
        syncbn.convert(ddp, "sync")
    except ValueError as error:
        return type(ddp.module.bn1).__name__, str(error)
    return "", ""


@pytest.mark.distributed
def test_ddp_accepts_a_converted_model_and_convert_refuses_ddp(ranks: Callable[[int], Ranks]) -> None:
    for name, message in ranks(2).run(wrapped_and_converted):
        assert name == "SyncBatchNorm"
        assert "convert first: DistributedDataParallel(syncbn.convert(model, ...))" in message
