"""Recalibrated statistics are those of all samples together, for any batches and ranks."""

import copy
import random
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import syncbn
from tests.policy.nets import TwoStages, images, seeded
from tests.ranks import Ranks


def cut(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return [x[start:stop] for start, stop in pairwise(accumulate([0, *sizes]))]


def pooled(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel over all samples, by the definition."""
    columns = torch.cat([v.double().movedim(1, 0).flatten(1) for v in values], dim=1)
    return columns.mean(1), columns.var(1, unbiased=True)


def what_the_norms_see(net: TwoStages, batches: list[Tensor]) -> list[list[Tensor]]:
    """Inputs of both norms when each normalizes by its batch, computed without the layers."""
    first, second = [], []
    for x in batches:
        first.append(net.stem[0](x))
        y = F.batch_norm(first[-1], None, None, net.stem[1].weight, net.stem[1].bias, training=True)
        second.append(net.body[0](y.relu()))
        if net.again:
            y = F.batch_norm(second[-1], None, None, net.body[1].weight, net.body[1].bias, training=True)
            second.append(2 * y.relu() + 1)
    return [first, second]


def assert_statistics(layer: Any, values: list[Tensor], tolerance: float = 1e-6) -> None:
    mean, var = pooled(values)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 2, 3, 7]), min_size=1, max_size=6).filter(any),
    center=st.sampled_from([0.0, 1e4]),
    spatial=st.lists(st.integers(1, 3), max_size=3),
)
def test_one_layer_has_the_moments_of_all_batches_together(sizes: list[int], center: float, spatial: list[int]) -> None:
    x = torch.randn(sum(sizes), 3, *spatial, generator=torch.Generator().manual_seed(0)) + center
    layer = syncbn.SyncBatchNorm(3).double()
    syncbn.recalibrate(layer, (part.double() for part in cut(x, sizes)))
    assert_statistics(layer, [x], tolerance=1e-9)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, syncbn.SyncBatchNorm])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice a forward"])
def test_every_layer_of_a_network(norm: Callable[[int], nn.Module], again: bool) -> None:
    net = seeded(lambda: TwoStages(norm, again)).double()
    batches = [x.double() for x in cut(images(11), [4, 5, 2])]
    seen = what_the_norms_see(net, batches)
    syncbn.recalibrate(net, [(x, torch.zeros(len(x))) for x in batches])
    assert_statistics(net.stem[1], seen[0], tolerance=1e-10)
    assert_statistics(net.body[1], seen[1], tolerance=1e-10)
    assert int(net.stem[1].num_batches_tracked) == 3


def test_only_the_first_batches_are_used() -> None:
    net, batches = seeded(TwoStages), cut(images(9), [4, 5])
    drawn = []
    syncbn.recalibrate(net, (drawn.append(x) or x for x in batches), max_batches=1)
    assert len(drawn) == 1
    assert_statistics(net.stem[1], [net.stem[0](batches[0])])


def test_a_mask_leaves_out_what_does_not_count() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = syncbn.SyncBatchNorm(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x, mask=x[:, 0] > 0)

    net, x = Masked(), torch.randn(20, 2)
    syncbn.recalibrate(net, [x[:9], x[9:]])
    assert_statistics(net.norm, [x[x[:, 0] > 0]])


def test_modes_generators_weights_and_hooks_are_as_before() -> None:
    net = nn.Sequential(seeded(TwoStages), nn.Dropout(0.5))
    net[0].body.eval()
    before = copy.deepcopy(net)
    states = torch.get_rng_state(), random.getstate()

    def augmented() -> Iterator[Tensor]:
        for x in cut(images(8), [4, 4]):
            yield x * random.random() + torch.randn_like(x)

    syncbn.recalibrate(net, augmented())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    for (name, now), was in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, was), name
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_dropout_is_off_as_in_evaluation() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2)).train()
    x = images(50)
    syncbn.recalibrate(net, [x])
    assert_statistics(net[1], [x])


def test_frozen_and_excluded_layers_stay() -> None:
    net = syncbn.freeze(seeded(TwoStages), include="stem.*")
    frozen = net.stem[1].running_mean.clone()
    syncbn.recalibrate(net, [images(6)])
    assert torch.equal(net.stem[1].running_mean, frozen)
    expected = net.stem.eval()(images(6))  # by the frozen statistics
    assert_statistics(net.body[1], [net.body[0](expected)])
    with pytest.raises(ValueError, match="1 are frozen"):
        syncbn.recalibrate(net, [images(6)], exclude="body.*")


class FrozenBatchNorm2d(nn.Module):
    """torchvision's and detectron2's layer: four buffers, no counter, no momentum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, syncbn.norm_layer("frozen")], ids=["torchvision's", "ours"])
def test_norms_that_are_frozen_by_their_class_stay(norm: Callable[[int], nn.Module]) -> None:
    net = TwoStages()
    net.stem[1] = norm(4)
    before = copy.deepcopy(net.stem[1].state_dict())
    syncbn.recalibrate(net, [images(6)])
    assert all(torch.equal(value, before[key]) for key, value in net.stem[1].state_dict().items())
    assert_statistics(net.body[1], [net.body[0](net.stem.eval()(images(6)))])
    with pytest.raises(ValueError, match=r"2 are frozen, syncbn\.revert\(model\), or syncbn\.convert"):
        syncbn.recalibrate(TwoStages(norm), [images(6)])


@pytest.mark.parametrize("sizes", [[4, 3, 1], [1]])
def test_instance_norms_have_the_averages_of_samples(sizes: list[int]) -> None:
    """torch's rule for one batch of all samples and momentum 1."""
    layers = [nn.InstanceNorm2d(2, momentum=1.0, track_running_stats=True).double() for _ in range(2)]
    x = images(sum(sizes)).double()
    layers[0](x)
    syncbn.recalibrate(layers[1], cut(x, sizes))
    assert_close = torch.testing.assert_close
    assert_close(layers[1].running_mean, layers[0].running_mean)
    assert_close(layers[1].running_var, layers[0].running_var)
    with pytest.raises(ValueError, match="no batch normalization layer with running statistics"):
        syncbn.inspect(layers[1], [x])  # which compares with the moments of batches


def test_a_layer_that_is_not_reached_stays() -> None:
    net = seeded(TwoStages)
    net.unused = nn.BatchNorm2d(3)
    syncbn.recalibrate(net, [images(6)])
    assert torch.equal(net.unused.running_var, torch.ones(3))
    assert int(net.unused.num_batches_tracked) == 0


def test_the_window_of_cross_iteration_norms_is_empty_afterwards() -> None:
    net = syncbn.convert(seeded(TwoStages), "cross_iteration", window=3).train()
    for seed in range(3):
        net(images(4, seed))
    assert len(net.stem[1]._slots) == 2
    batches = cut(images(9), [5, 4])
    syncbn.recalibrate(net, batches)
    assert len(net.stem[1]._slots) == 0
    assert net.stem[1]._iterations == 3  # of the training alone
    assert_statistics(net.stem[1], [net.stem[0](x) for x in batches])


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([], {}, ValueError, "there are no batches"),
        ([torch.zeros(0, 2, 6, 6)], {}, ValueError, "no sample of the 1 batches reaches a layer"),
        ([images(4)], {"max_batches": 0}, ValueError, "max_batches must be at least 1"),
        ([images(4), images(4) * torch.nan], {}, ValueError, r"stem\.1 has seen values that aren't finite"),
        ([images(4), images(4)[:, :1]], {}, RuntimeError, "channels"),
        ([images(4), {"image": images(4)}], {}, TypeError, "TwoStages takes x; the batch has 'image': give forward="),
    ],
    ids=["none", "no samples", "max", "nan", "channels", "mapping"],
)
def test_a_failure_changes_nothing(
    batches: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    net = seeded(TwoStages)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(error, match=message):
        syncbn.recalibrate(net, batches, **options)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert net.training


def test_a_model_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer whose running statistics"):
        syncbn.recalibrate(TwoStages(lambda channels: nn.GroupNorm(1, channels)), [images(2)])


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("decorrelated", r"stem\.1 normalizes by more than a mean and a variance \(running_whitener\)"),
        ("recurrent", r"stem\.1 has running statistics of shape \(100, \d\)"),
    ],
)
def test_layers_with_other_statistics_are_refused(norm: str, message: str) -> None:
    net = syncbn.convert(seeded(TwoStages), norm, include="stem.*")
    with pytest.raises(ValueError, match=message):
        syncbn.recalibrate(net, [images(4)])
    syncbn.recalibrate(net, [images(4)], exclude="stem.*")


def recalibrate_on_ranks(norm: str, sizes: list[list[int]], wrapped: bool = False) -> dict[str, Tensor]:
    """Recalibrate with sizes[b][r] samples of batch b on rank r."""
    net = syncbn.convert(seeded(TwoStages).double(), norm)
    rank = dist.get_rank() if dist.is_initialized() else None
    x = images(sum(map(sum, sizes))).double()
    batches = []
    for batch in cut(x, [sum(shares) for shares in sizes]):
        shares = sizes[len(batches)]
        batches.append(batch if rank is None else cut(batch, shares)[rank])
    syncbn.recalibrate(nn.parallel.DistributedDataParallel(net) if wrapped else net, batches)
    return dict(net.state_dict())


@pytest.mark.distributed
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "DDP"])
def test_ranks_pool_unequal_shares_to_the_statistics_of_one_process(
    ranks: Callable[[int], Ranks], wrapped: bool
) -> None:
    sizes = [[3, 1], [0, 4], [2, 3]]
    single = recalibrate_on_ranks("sync", sizes)
    for rank in ranks(2).run(recalibrate_on_ranks, "sync", sizes, wrapped):
        torch.testing.assert_close(rank, single, rtol=1e-10, atol=1e-12)


@pytest.mark.distributed
def test_unsynchronized_layers_are_pooled_over_ranks_too(ranks: Callable[[int], Ranks]) -> None:
    sizes = [[3, 2], [0, 4]]
    net = seeded(TwoStages).double()
    x = images(9).double()
    shares = [x[:3], x[3:5], x[5:]]
    seen = what_the_norms_see(net, shares)
    for rank in ranks(2).run(recalibrate_on_ranks, "batch", sizes):
        net.load_state_dict(rank)
        assert_statistics(net.stem[1], seen[0], tolerance=1e-10)
        assert_statistics(net.body[1], seen[1], tolerance=1e-10)


def give_ranks_different_numbers_of_batches() -> str:
    net = seeded(lambda: TwoStages(syncbn.SyncBatchNorm))
    before = net.stem[1].running_mean.clone()
    try:
        syncbn.recalibrate(net, [images(4)] * (2 + dist.get_rank()))
    except ValueError as error:
        assert torch.equal(net.stem[1].running_mean, before)
        return str(error)
    return ""


@pytest.mark.distributed
def test_different_numbers_of_batches_are_an_error_on_every_rank(ranks: Callable[[int], Ranks]) -> None:
    for message in ranks(2).run(give_ranks_different_numbers_of_batches):
        assert "after 2 batches 1 of the ranks have another one" in message


def give_all_ranks_one_sample() -> str:
    layer = syncbn.SyncBatchNorm(2)
    try:
        syncbn.recalibrate(layer, [torch.ones(1 - dist.get_rank(), 2)])
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_one_sample_on_all_ranks_together_has_no_variance(ranks: Callable[[int], Ranks]) -> None:
    for message in ranks(2).run(give_all_ranks_one_sample):
        assert "a single sample of each channel" in message


@pytest.mark.parametrize("name", ["moving_average", "batch_renorm", "learnable_momentum", "adaptive", "switchable"])
def test_what_only_training_moves_stays(name: str) -> None:
    torch.manual_seed(0)
    options = {"centre": False, "window": 3, "warmup": 1} if name == "moving_average" else {}
    model = nn.Sequential(syncbn.norm_layer(name, **options)(3))
    for _ in range(4):
        model(torch.randn(8, 3, 4) + 3).square().sum().backward()
    written = ("running_mean", "running_var", "num_batches_tracked")
    before = {key: buffer.clone() for key, buffer in model[0].named_buffers() if key not in written}
    syncbn.recalibrate(model, [torch.randn(16, 3, 4) + 5])
    after = {key: buffer for key, buffer in model[0].named_buffers() if key not in written}
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_second_moments_are_recalibrated_about_0() -> None:
    """Moving average normalization subtracts no mean: evaluation divides by the root of E[x²] over all samples."""
    model = nn.Sequential(syncbn.norm_layer("moving_average", centre=False)(3)).double()
    nn.init.uniform_(model[0].weight)
    batches = [torch.randn(size, 3, 5, dtype=torch.float64) * 2 + 4 for size in (6, 1, 9)]
    syncbn.recalibrate(model, batches)
    x = torch.cat(batches)
    square = x.square().mean([0, 2])
    assert not model[0].running_mean.any()
    torch.testing.assert_close(model[0].running_var, square)
    expected = x * (model[0].weight / (square + model[0].eps).sqrt()).view(-1, 1)
    torch.testing.assert_close(model.eval()(x), expected)
