"""Cross-iteration BN against its definition, with Jacobians by autograd; any split against one process."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm import CrossIterationBatchNorm
from syncbn.norm.core import compat
from tests.norm.cross_iteration_oracle import Oracle

FEEDERS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1, bias=False), (3, 7)),
    "stride, bias": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 6)),
    "dilation, groups": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2, bias=False), (4, 8, 7)),
    "pointwise": (lambda: nn.Conv2d(5, 3, 1, bias=False), (5, 3, 3)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "padding same": (lambda: nn.Conv2d(3, 4, (3, 1), padding="same"), (3, 5, 5)),
    "padding valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (3, 5, 5)),
    "reflected": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2), (2, 4, 4, 5)),
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 4, stride=2, dilation=2, bias=False), (3, 5)),
}


def pair(feeder: nn.Module, **options: Any) -> tuple[nn.Sequential, CrossIterationBatchNorm]:
    channels = feeder.out_features if isinstance(feeder, nn.Linear) else feeder.out_channels
    norm = CrossIterationBatchNorm(channels, **options)
    norm.attach(feeder)
    return nn.Sequential(feeder, norm), norm


def stir(module: nn.Module, seed: int, scale: float = 0.1) -> None:
    """Change every parameter of a feeder, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("kind", FEEDERS)
def test_closed_forms_equal_autograd(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = FEEDERS[kind]
    net, norm = pair(make().double(), window=3)
    oracle = Oracle(net[0], window=3)
    for step, batch in enumerate((4, 2, 5, 3, 2)):
        x = torch.randn(batch, *shape, dtype=torch.float64) + 1
        x, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = net(x), oracle.step(twin)
        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(y)
        net.zero_grad()
        y.backward(dy)
        grads = torch.autograd.grad(expected, [twin, *oracle.parameters], dy)
        for ours, theirs in zip([x, *net[0].parameters()], grads, strict=True):
            torch.testing.assert_close(ours.grad, theirs)
        torch.testing.assert_close(norm.running_mean.double(), oracle.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), oracle.running_var, rtol=1e-5, atol=1e-6)
        stir(net[0], step)


def test_the_first_iterations_are_plain_batch_norm() -> None:
    net, norm = pair(nn.Conv2d(3, 4, 3).double(), window=3, burn_in=2)
    oracle = Oracle(net[0], window=3, burn_in=2)
    for step in range(5):
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(net(x), oracle.step(x))
        torch.testing.assert_close(norm.running_var.double(), oracle.running_var, rtol=1e-5, atol=1e-6)
        stir(net[0], step)


def test_a_constant_input_shows_what_the_first_order_leaves_out() -> None:
    conv = nn.Conv2d(3, 4, 3, bias=False).double()
    net, norm = pair(conv, window=2, eps=1e-12, momentum=1.0)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    net(x)
    before = conv.weight.detach().clone()
    stir(conv, seed=1, scale=0.02)
    y, change = conv(x), nn.functional.conv2d(x, conv.weight.detach() - before)
    net(x)
    samples, changes = (t.movedim(1, 0).flatten(1).detach() for t in (y, change))
    low = changes.square().mean(1)
    assert (low > 1e-5).all(), "there is something to leave out"
    mean, var = norm.running_mean.double(), norm.running_var.double()
    torch.testing.assert_close(mean, samples.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var + mean**2, samples.square().mean(1) - low / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_window_of_one_is_sync_batch_norm(training: bool) -> None:
    conv = nn.Conv2d(3, 4, 3)
    net, norm = pair(conv, window=1)
    sync = syncbn.SyncBatchNorm(4)
    for _ in range(3):
        x = torch.randn(4, 3, 6, 6)
        assert torch.equal(net(x), sync(conv(x)))
        stir(conv, 0)
    net.train(training)
    sync.train(training)
    assert torch.equal(net(x), sync(conv(x)))
    assert torch.equal(norm.running_mean, sync.running_mean)
    assert torch.equal(norm.running_var, sync.running_var)


def run_split(sizes: list[list[int]], seed: int, window: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """This rank's share of some iterations: y and dx of each, and the gradient of the convolution's weight."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(seed)
    net, norm = pair(nn.Conv2d(2, 3, 2, groups=1).double(), window=window)
    results = []
    for step, shares in enumerate(sizes):
        whole = torch.randn(sum(shares), 2, 4, 3, dtype=torch.float64)
        dy = torch.randn(sum(shares), 3, 3, 2, dtype=torch.float64)
        mine = slice(sum(shares[:rank]), sum(shares[: rank + 1])) if dist.is_initialized() else slice(None)
        x = whole[mine].clone().requires_grad_()
        net.zero_grad()
        y = net(x)
        y.backward(dy[mine])
        results.append((y.detach(), x.grad, net[0].weight.grad.clone()))
        stir(net[0], step)
    results.append((norm.running_mean, norm.running_var, norm.state_dict()["_extra_state"]["slots"][-1][3]))
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 4])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_split_is_the_one_process_result(ranks: Any, world_size: int, data: st.DataObject) -> None:
    share = st.lists(st.integers(0, 3), min_size=world_size, max_size=world_size).filter(lambda s: sum(s) > 0)
    sizes = data.draw(st.lists(share, min_size=3, max_size=4))
    whole = run_split(sizes, 3, 3)
    split = ranks(world_size).run(run_split, sizes, 3, 3)
    for step, (y, dx, dweight) in enumerate(whole[:-1]):
        torch.testing.assert_close(torch.cat([results[step][0] for results in split]), y)
        torch.testing.assert_close(torch.cat([results[step][1] for results in split]), dx)
        torch.testing.assert_close(sum(results[step][2] for results in split), dweight)
    for results in split:
        for ours, theirs in zip(results[-1], whole[-1], strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_derivative_is_that_of_the_definition_to_second_order() -> None:
    net, norm = pair(nn.Conv1d(2, 3, 2).double(), window=3)
    net(torch.randn(4, 2, 5, dtype=torch.float64))
    stir(net[0], 0)
    slots = norm.state_dict()["_extra_state"]

    def function(x: Tensor) -> Tensor:
        norm.set_extra_state(slots)  # each call is the same iteration
        return net(x)

    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


# --- which passes are iterations ------------------------------------------------------------------------------------


def slots_of(norm: CrossIterationBatchNorm) -> int:
    return len(norm.get_extra_state()["slots"])


def test_every_training_pass_is_an_iteration_and_evaluation_is_none() -> None:
    net, norm = pair(nn.Conv2d(3, 4, 3), window=8)
    x = torch.randn(2, 3, 6, 6)
    (net(x).sum() + net(x + 1).sum()).backward()  # two calls before a backward
    assert slots_of(norm) == 2
    with torch.no_grad():
        net(x)
    assert slots_of(norm) == 3
    net.eval()
    net(x)
    assert slots_of(norm) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_pass_repeats_its_window(reentrant: bool) -> None:
    torch.manual_seed(0)
    net, norm = pair(nn.Conv2d(3, 4, 3).double(), window=3)
    plain = copy.deepcopy(net)
    for step in range(4):
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        checkpoint(net, mine, use_reentrant=reentrant).square().sum().backward()
        plain(other).square().sum().backward()
        torch.testing.assert_close(mine.grad, other.grad)
        torch.testing.assert_close(norm.running_var, plain[1].running_var)
        assert slots_of(norm) == min(step + 1, 2)
        stir(net[0], step)
        stir(plain[0], step)


def test_a_recomputation_of_an_older_pass_is_refused() -> None:
    net, _ = pair(nn.Conv2d(3, 4, 3), window=3)
    passes = [checkpoint(net, torch.randn(2, 3, 6, 6, requires_grad=True), use_reentrant=False) for _ in range(2)]
    with pytest.raises(NotImplementedError, match="call backward after each forward"):
        passes[0].sum().backward()


def test_an_iteration_that_is_not_finite_has_no_weight_later() -> None:
    net, norm = pair(nn.Conv2d(3, 4, 3).double(), window=3)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for model, broken in ((net, True), (twin, False)):
        model(x)
        if broken:
            model(torch.full_like(x, torch.inf))
    torch.testing.assert_close(net(x + 1), twin(x + 1))
    assert norm.running_var.isfinite().all()


def test_a_frozen_convolution_is_carried_nowhere() -> None:
    conv = nn.Conv2d(3, 4, 3).requires_grad_(False).double()
    net, _ = pair(conv, window=2)
    batches = [torch.randn(2, 3, 6, 6, dtype=torch.float64) for _ in range(2)]
    net(batches[0])
    everything = conv(torch.cat(batches))
    expected = nn.functional.batch_norm(everything, None, None, training=True)[2:]
    torch.testing.assert_close(net(batches[1]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_slots_wide(dtype: torch.dtype) -> None:
    net, norm = pair(nn.Conv2d(3, 4, 3), window=3)
    exact = copy.deepcopy(net).double()
    for step in range(3):
        x = torch.randn(4, 3, 6, 6)
        with torch.autocast("cpu", dtype):
            y = net(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact(x.double()), rtol=0.03, atol=0.05)
        stir(net[0], step, 0.02)
        stir(exact[0], step, 0.02)
    assert {t.dtype for slot in norm.get_extra_state()["slots"] for t in slot} == {torch.float32, torch.float64}
    net.half()
    assert {t.dtype for slot in norm.get_extra_state()["slots"] for t in slot} == {torch.float32, torch.float64}


def test_channels_last_is_kept_and_changes_nothing() -> None:
    net, _ = pair(nn.Conv2d(3, 4, 3).double(), window=3)
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for step in range(3):
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        y, z = net(x), twin(x.to(memory_format=torch.channels_last))
        assert z.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, z)
        stir(net[0], step)
        stir(twin[0], step)


# --- the state ------------------------------------------------------------------------------------------------------


def train(net: nn.Module, steps: range) -> None:
    for step in steps:
        net(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step)))
        stir(net[0], step)


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "file"])
def test_a_copy_goes_on_as_the_original(way: str, tmp_path: Any) -> None:
    net, _ = pair(nn.Conv2d(3, 4, 3), window=3, burn_in=1)
    train(net, range(4))
    if way == "deepcopy":
        twin = copy.deepcopy(net)
    else:
        twin, _ = pair(nn.Conv2d(3, 4, 3), window=3, burn_in=1)
        state = net.state_dict()
        if way == "file":
            torch.save(state, tmp_path / "net.pt")
            state = torch.load(tmp_path / "net.pt", weights_only=True)
        twin.load_state_dict(state)
    for net_or_twin in (net, twin):
        train(net_or_twin, range(4, 8))
    assert torch.equal(net[1].running_var, twin[1].running_var)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(net(x), twin(x))


def test_checkpoints_of_batch_norm_go_both_ways_and_empty_the_window() -> None:
    net, norm = pair(nn.Conv2d(3, 4, 3), window=3)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert set(net.state_dict()) == set(plain.state_dict())
    train(net, range(3))
    assert slots_of(norm) == 2
    net.load_state_dict(plain.state_dict())
    assert slots_of(norm) == 0
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(net(x), plain(x))


def test_state_a_slot_is_what_the_design_says() -> None:
    conv = nn.Conv2d(8, 6, 3, groups=2)
    net, norm = pair(conv, window=5)
    for _ in range(9):
        net(torch.randn(2, 8, 4, 4))
    filter_size = 4 * 9
    slots = norm.get_extra_state()["slots"]
    assert len(slots) == 4
    for slot in slots:
        assert sum(t.numel() for t in slot) == 6 * filter_size + 2 * filter_size + 2 * 6 + 1


# --- with DDP -------------------------------------------------------------------------------------------------------


def train_ddp(sync: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    torch.manual_seed(0)
    net = syncbn.models.resnet.resnet18("batch", num_classes=4, stem="cifar", width=4)
    syncbn.convert(net, "cross_iteration", window=3, sync=sync)
    model = DistributedDataParallel(net, **compat.ddp_without_buffers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(dist.get_rank())
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(2 + dist.get_rank(), 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return dict(net.named_parameters()), net.state_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("sync", [True, False])
def test_ranks_stay_together_under_ddp(ranks: Any, sync: bool) -> None:
    (first, state), (second, other) = ranks(2).run(train_ddp, sync)
    for name in first:
        assert torch.equal(first[name], second[name])
    same = torch.equal(state["layer1.0.bn1.running_var"], other["layer1.0.bn1.running_var"])
    assert same == sync
    slots, others = (s["layer1.0.bn1._extra_state"]["slots"][0][3] for s in (state, other))
    assert torch.equal(slots, others) == sync
