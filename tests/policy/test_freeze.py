"""Frozen layers don't change, whatever is done to the model; unfrozen ones are restored."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations

import syncbn
from syncbn.norm.core import compat
from syncbn.policy.freeze import has_frozen_statistics
from tests.policy.nets import TwoStages, images, seeded
from tests.ranks import Ranks


def train(net: nn.Module, steps: int = 2) -> nn.Module:
    """Do some steps in training mode, with weight decay and momentum."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        net(images(4, seed=step)).square().sum().backward()
        optimizer.step()
    return net


def state(net: nn.Module, glob: str = "") -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if glob in key}


def unchanged(net: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = net.state_dict()
    return all(torch.equal(now[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm1d(3), (4, 3, 5)),
        (nn.BatchNorm2d(3), (4, 3, 5, 2)),
        (nn.BatchNorm3d(3), (4, 3, 5, 2, 2)),
        (nn.SyncBatchNorm(3), (4, 3, 5)),
        (syncbn.SyncBatchNorm(3), (4, 3, 5, 2)),
    ],
    ids=lambda value: str(value),
)
def test_a_frozen_layer_in_training_is_the_affine_map_by_its_statistics(layer: Any, shape: tuple[int, ...]) -> None:
    layer = syncbn.freeze(seeded(lambda: copy.deepcopy(layer)).double()).train()
    before = state(layer, "running")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    y = layer(x)
    y.backward(dy)

    along = (1, -1, *(1 for _ in shape[2:]))
    mean, var = layer.running_mean.view(along), layer.running_var.view(along)
    scale = layer.weight.detach().view(along) / (var + layer.eps).sqrt()
    torch.testing.assert_close(y, (x - mean) * scale + layer.bias.view(along))
    torch.testing.assert_close(x.grad, dy * scale)
    assert layer.weight.grad is not None
    assert layer.training
    assert unchanged(layer, before)


@pytest.mark.parametrize(
    "journey",
    [
        lambda net: net,
        lambda net: net.eval().train(),
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: syncbn.convert(net, "sync"),
        lambda net: syncbn.revert(syncbn.convert(net, "sync")),
        lambda net: torch.compile(net, fullgraph=True, backend="eager"),
        lambda net: net.double().float(),
    ],
    ids=["as it is", "train", "deepcopy", "pickle", "convert", "revert", "compile", "dtype"],
)
def test_frozen_statistics_survive(journey: Callable[[nn.Module], nn.Module]) -> None:
    net = syncbn.freeze(seeded(TwoStages), affine=True, include="stem.*")
    net = journey(net)
    frozen, moving = state(net, "stem.1"), state(net, "body.1.running")
    train(net)
    assert unchanged(net, frozen)
    assert not unchanged(net, moving)


def test_a_checkpoint_loads_into_a_frozen_model_and_stays() -> None:
    saved = io.BytesIO()
    torch.save(syncbn.freeze(seeded(TwoStages, seed=5)).state_dict(), saved)
    net = syncbn.freeze(seeded(TwoStages))
    saved.seek(0)
    net.load_state_dict(torch.load(saved, weights_only=True))
    expected = state(seeded(TwoStages, seed=5), "running")
    assert unchanged(train(net), expected)


def test_unfreeze_gives_back_exactly_what_was() -> None:
    net, twin = seeded(TwoStages), seeded(TwoStages)
    for model in (net, twin):
        model.stem[1].weight.requires_grad_(False)
        model.body[1].eval()
    syncbn.freeze(net, affine=True)
    assert not any(parameter.requires_grad for parameter in net.stem[1].parameters())
    syncbn.freeze(net, affine=True)  # twice is once
    syncbn.unfreeze(net)

    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in twin.parameters()]
    assert [m.training for m in net.modules()] == [m.training for m in twin.modules()]
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in net.modules())
    assert unchanged(train(net), train(twin).state_dict())


def test_unfreeze_of_a_copy_or_a_converted_model_and_of_one_half() -> None:
    net = syncbn.freeze(seeded(TwoStages), affine=True)
    twin = syncbn.unfreeze(syncbn.convert(copy.deepcopy(net), "sync"), affine=False)
    assert not any(has_frozen_statistics(layer) for layer in (twin.stem[1], twin.body[1]))
    assert all(has_frozen_statistics(layer) for layer in (net.stem[1], net.body[1]))
    scales = {key: value for key, value in state(twin, ".1.").items() if key.endswith(("weight", "bias"))}
    before = state(twin, "running_mean")
    train(twin)
    assert unchanged(twin, scales)
    assert not unchanged(twin, before)


def test_an_old_gradient_of_a_frozen_parameter_is_not_applied() -> None:
    net = seeded(TwoStages)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net(images(4)).sum().backward()
    syncbn.freeze(net, affine=True)
    before = state(net.stem[1])
    optimizer.step()
    assert unchanged(net.stem[1], before)


def test_statistics_alone_leave_the_affine_parameters_trainable_and_the_reverse() -> None:
    net = syncbn.freeze(seeded(TwoStages))
    scale = net.stem[1].weight.detach().clone()
    train(net)
    assert not torch.equal(net.stem[1].weight, scale)

    net = syncbn.freeze(seeded(TwoStages), stats=False, affine=True)
    mean, scale = net.stem[1].running_mean.clone(), net.stem[1].weight.detach().clone()
    train(net)
    assert torch.equal(net.stem[1].weight, scale)
    assert not torch.equal(net.stem[1].running_mean, mean)


def test_a_layer_that_raises_is_in_its_own_mode_afterwards() -> None:
    layer = syncbn.freeze(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="4D"):
        layer(torch.randn(2, 3))
    assert layer.training


class _Past(nn.Module):
    """A network that passes by the hooks of its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm.forward(x)


def test_calls_that_no_hook_sees_are_told_when_the_model_is_saved() -> None:
    net = syncbn.freeze(_Past())
    net.eval()(torch.randn(2, 3, 4, 4))
    net.state_dict()
    net.train()(torch.randn(2, 3, 4, 4))
    with pytest.warns(UserWarning, match="norm is frozen, but its running statistics were trained"):
        saved = copy.deepcopy(net).state_dict()
    net.load_state_dict(saved)
    net.state_dict()


def test_the_scale_of_a_parametrized_norm_is_frozen_and_learned() -> None:
    def net() -> Any:
        model: Any = seeded(TwoStages)
        parametrizations.weight_norm(model.stem[1], "weight", dim=0)
        return model

    frozen = syncbn.freeze(net(), affine=True)
    scale = frozen.stem[1].weight.clone()
    train(frozen)
    assert torch.equal(frozen.stem[1].weight, scale)
    syncbn.unfreeze(frozen)
    assert all(parameter.requires_grad for parameter in frozen.parameters())
    adapted = syncbn.adapt(net(), [images(6)], method="tent", lr=0.1)
    assert not torch.allclose(adapted.stem[1].weight, scale)


def test_group_norms_have_affine_parameters_to_freeze_and_no_statistics() -> None:
    net = TwoStages(lambda channels: nn.GroupNorm(1, channels))
    syncbn.freeze(net, stats=False, affine=True)
    assert not net.stem[1].weight.requires_grad
    with pytest.raises(ValueError, match="no such normalization layer"):
        syncbn.freeze(net)


def test_a_layer_without_statistics_is_refused_before_anything_is_frozen() -> None:
    net = TwoStages()
    net.body[1] = nn.BatchNorm2d(5, track_running_stats=False)
    with pytest.raises(ValueError, match=r"body\.1 has no running statistics to freeze .* exclude="):
        syncbn.freeze(net)
    assert not has_frozen_statistics(net.stem[1])
    with pytest.raises(ValueError, match="no normalization layer is named 'layer4"):
        syncbn.freeze(net, include="layer4.*")


def freeze_and_run_on_one_rank() -> bool:
    layer = syncbn.freeze(seeded(lambda: syncbn.SyncBatchNorm(2)))
    if dist.get_rank() == 0:  # the other rank would be waited for if anything were sent
        layer(images(2)).sum().backward()
    return layer.training


@pytest.mark.distributed
def test_a_frozen_layer_waits_for_nobody(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(freeze_and_run_on_one_rank) == [True, True]


def train_under_ddp(sizes: list[int]) -> dict[str, torch.Tensor]:
    net = syncbn.freeze(seeded(lambda: TwoStages(syncbn.SyncBatchNorm)).double(), affine=True, include="stem.*")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = nn.parallel.DistributedDataParallel(net, **compat.ddp_without_buffers()) if world > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        x = images(sum(sizes), seed=step).double()
        share = x.split(sizes)[rank] if world > 1 else x
        optimizer.zero_grad()
        syncbn.mean_over_ranks(model(share).square().sum(1)).backward()
        optimizer.step()
    return state(net)


@pytest.mark.distributed
@pytest.mark.parametrize("sizes", [[3, 1], [4, 0]])
def test_two_ranks_fine_tune_as_one_process_does(ranks: Callable[[int], Ranks], sizes: list[int]) -> None:
    single = train_under_ddp(sizes)
    for rank in ranks(2).run(train_under_ddp, sizes):
        torch.testing.assert_close(rank, single, rtol=1e-10, atol=1e-12)
    original = seeded(lambda: TwoStages(syncbn.SyncBatchNorm)).double().state_dict()
    for key in ("stem.1.running_mean", "stem.1.weight", "stem.1.num_batches_tracked"):
        assert torch.equal(single[key], original[key])


@pytest.mark.parametrize(
    "compiler", [torch.compile, lambda net, **how: (net.compile(**how), net)[1]], ids=["a", "in place"]
)
def test_a_model_that_ran_compiled_before_is_frozen_and_unfrozen(compiler: Any) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(4, 3, 5, 5)
    compiled = compiler(net, backend="eager")
    counts = []
    for change in (lambda net: net, syncbn.freeze, syncbn.unfreeze, syncbn.freeze):
        change(net)
        with torch.no_grad():
            compiled(x)
        counts.append(int(net[1].num_batches_tracked))
    assert counts == [1, 1, 2, 2]
