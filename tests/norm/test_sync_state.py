"""Buffers, dtypes, checkpoints, copies, and all wrong arguments."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import syncbn

HALF = [torch.float16, torch.bfloat16]


def trained() -> syncbn.SyncBatchNorm:
    layer = syncbn.SyncBatchNorm(3)
    layer(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 3 + 100.1)
    return layer


@pytest.mark.parametrize("dtype", HALF)
def test_half_models_keep_their_statistics_to_the_last_bit(dtype: torch.dtype) -> None:
    layer = trained()
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    nn.Sequential(layer).to(dtype)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.running_var, var)
    x = torch.randn(8, 3).to(dtype)
    assert layer.eval()(x).dtype == layer.train()(x).dtype == dtype
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_half_eval_equals_float_eval(dtype: torch.dtype) -> None:
    layer = trained()
    x = (torch.randn(8, 3) * 3 + 100).to(dtype)
    expected = layer.eval()(x.float()).to(dtype)
    torch.testing.assert_close(layer.to(dtype)(x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("assign", [False, True])
def test_a_half_checkpoint_leaves_float_buffers(dtype: torch.dtype, assign: bool) -> None:
    checkpoint = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in trained().state_dict().items()
    }
    layer = syncbn.SyncBatchNorm(3)
    layer.load_state_dict(checkpoint, assign=assign)
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
    torch.testing.assert_close(layer.running_mean, checkpoint["running_mean"].float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALF)
def test_half_parameters_from_the_start(dtype: torch.dtype) -> None:
    layer = syncbn.SyncBatchNorm(3, dtype=dtype)
    assert layer.weight.dtype == dtype
    assert layer.running_mean.dtype == torch.float32


def test_double_and_back() -> None:
    layer = trained().double()
    assert {b.dtype for b in (layer.running_mean, layer.running_var)} == {torch.float64}
    assert layer.float().running_mean.dtype == torch.float32


def test_meta_device() -> None:
    layer = syncbn.SyncBatchNorm(3, device="meta")
    assert layer.to_empty(device="cpu").running_mean.device.type == "cpu"


@pytest.mark.parametrize("theirs", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_checkpoints_go_both_ways(theirs: type[nn.Module]) -> None:
    ours, other = trained(), theirs(3)
    other.load_state_dict(ours.state_dict())
    back = syncbn.SyncBatchNorm(3)
    back.load_state_dict(other.state_dict())
    torch.testing.assert_close(back.state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(nn.BatchNorm1d(3).state_dict())


def test_copies_and_pickles() -> None:
    layer = trained()
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin.state_dict(), torch.load(buffer, weights_only=True), rtol=0, atol=0)
        buffer.seek(0)
        twin.running_mean.zero_()
        assert layer.running_mean.any()


@pytest.fixture
def group() -> Any:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


def saved_and_loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


GROUPED = [
    lambda group: syncbn.SyncBatchNorm(3, process_group=group),
    lambda group: syncbn.convert(nn.SyncBatchNorm(3, process_group=group), "sync"),
    lambda group: syncbn.convert(syncbn.SyncBatchNorm(3, process_group=group), "adaptive"),
    lambda group: syncbn.convert(syncbn.convert(nn.SyncBatchNorm(3, process_group=group), "group"), "sync"),
    lambda group: syncbn.convert(nn.BatchNorm1d(3), "sync", process_group=group),
]


@pytest.mark.parametrize("build", GROUPED)
def test_a_copy_shares_the_process_group(group: Any, build: Any) -> None:
    model = nn.Sequential(build(group))
    for layer in (model[0], copy.deepcopy(model)[0], copy.deepcopy(copy.deepcopy(model[0]))):
        assert layer.process_group is group


@pytest.mark.parametrize("build", GROUPED)
@pytest.mark.parametrize("loaded", [saved_and_loaded, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_pickle_leaves_the_process_group_out(group: Any, build: Any, loaded: Any) -> None:
    """And what is loaded trains alone, evaluates, and in a process group doesn't take all ranks for its own."""
    x = torch.randn(6, 3)
    twin = loaded(loaded(nn.Sequential(build(group))))
    layer = twin[0]
    assert layer.process_group is None
    twin.eval()(x)
    for copied in (twin, copy.deepcopy(twin)):
        with pytest.raises(ValueError, match=r"set layer.process_group .*set_process_group"):
            copied.train()(x)
    layer.process_group = group
    torch.testing.assert_close(layer(x), nn.BatchNorm1d(3)(x))
    copied[0].process_group = None
    copied(x)


def test_a_layer_without_its_group_trains_alone_outside_of_any() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        saved = pickle.dumps(syncbn.SyncBatchNorm(3, process_group=dist.new_group([0])))
    finally:
        dist.destroy_process_group()
    x = torch.randn(6, 3)
    torch.testing.assert_close(pickle.loads(saved)(x), nn.BatchNorm1d(3)(x))


def test_a_group_is_checked_when_it_is_set() -> None:
    layer = syncbn.SyncBatchNorm(3)
    with pytest.raises(TypeError, match="process_group must be"):
        layer.process_group = "world"
    layer.__setstate__({**layer.__dict__, "process_group": None})  # as version 0.1 pickled it
    assert layer.process_group is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"num_features": 2.0}, TypeError, "num_features must be an int, got 2.0"),
        ({"eps": 0}, ValueError, "eps must be greater than 0, got 0"),
        ({"eps": -1e-5}, ValueError, "eps must be greater than 0"),
        ({"eps": float("nan")}, ValueError, "eps must be greater than 0"),
        ({"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\]"),
        ({"process_group": 4}, TypeError, "process_group must be a torch.distributed process group or None, got 4"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        syncbn.SyncBatchNorm(**{"num_features": 3, **arguments})


X = torch.randn(4, 3, 5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(4, 7),), ValueError, r"expected 3 channels in dimension 1, got shape \(4, 7\)"),
        ((torch.randn(3),), ValueError, r"expected an input \(N, C\) or \(N, C, \*spatial\), got shape \(3,\)"),
        ((torch.ones(4, 3, dtype=torch.long),), TypeError, r"floating-point input, got torch.int64.*\.float\(\)"),
        ((torch.ones(4, 3, dtype=torch.complex64),), TypeError, "floating-point input, got torch.complex64"),
        ((X, torch.ones(4, 5)), TypeError, "mask must be a bool .* got torch.float32"),
        (
            (X, torch.ones(4, 3, 5, dtype=torch.bool)),
            ValueError,
            r"mask must have shape .* = \(4, 5\), got \(4, 3, 5\)",
        ),
        ((X, torch.ones(4, dtype=torch.bool)), ValueError, r"mask must have shape .* = \(4, 5\), got \(4,\)"),
    ],
)
def test_wrong_inputs(arguments: tuple[Any, ...], error: type[Exception], message: str, training: bool) -> None:
    with pytest.raises(error, match=message):
        syncbn.SyncBatchNorm(3).train(training)(*arguments)


def test_one_sample_in_one_process() -> None:
    with pytest.raises(ValueError, match=r"one sample a channel has no variance, got shape \(1, 3\)"):
        syncbn.SyncBatchNorm(3)(torch.randn(1, 3))


def test_an_empty_batch_in_one_process() -> None:
    layer = syncbn.SyncBatchNorm(3)
    x = torch.randn(0, 3, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 3, 4)
    assert layer.num_batches_tracked.item() == 0
    assert layer.eval()(x).shape == (0, 3, 4)
