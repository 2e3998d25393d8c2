"""Batch renormalization against its formula in float64, and its schedule against optimizer steps."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm import BatchRenorm
from tests.ranks import Ranks

AT_ONCE = {"start_step": 0, "r_max_step": 0, "d_max_step": 0}
MOMENTUM, EPS = 0.3, 1e-5


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(seed: int, samples: int, *spatial: int) -> Tensor:
    """Samples whose mean and scale differ from batch to batch, so that limits are reached."""
    mean, scale = random(seed + 100, 2, 3, *[1] * len(spatial))
    return random(seed, samples, 3, *spatial) * scale.exp() + 2 * mean


def by_formula(
    batches: list[Tensor], grads: list[Tensor], limits: list[tuple[float, float]], mask: Tensor | None = None
) -> dict[str, Any]:
    """Outputs, gradients of x, sums of those of γ and β, and buffers of a layer with γ = 1.5 and β = 0.5 throughout."""
    weight, bias = (torch.full((3,), value, dtype=torch.float64, requires_grad=True) for value in (1.5, 0.5))
    running_mean, running_var = torch.zeros(3).double(), torch.ones(3).double()
    ys, dxs = [], []
    for x, dy, (r_max, d_max) in zip(batches, grads, limits, strict=True):
        x = x.clone().requires_grad_()
        columns = x.movedim(1, 0).flatten(1) if mask is None else x.movedim(1, 0)[:, mask]
        mean, var = columns.mean(1), columns.var(1, correction=0)
        std, running_std = (var + EPS).sqrt(), (running_var + EPS).sqrt()
        r = (std / running_std).detach().clip(1 / r_max, r_max)
        d = ((mean - running_mean) / running_std).detach().clip(-d_max, d_max)
        shape = (3, *[1] * (x.dim() - 2))
        xhat = (x - mean.view(shape)) / std.view(shape) * r.view(shape) + d.view(shape)
        y = xhat * weight.view(shape) + bias.view(shape)
        y = y if mask is None else torch.where(mask.unsqueeze(1), y, 0)
        (y * dy).sum().backward()
        ys.append(y.detach())
        dxs.append(x.grad)
        running_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean.detach()
        running_var = (1 - MOMENTUM) * running_var + MOMENTUM * columns.detach().var(1)
    buffers = {"running_mean": running_mean, "running_var": running_var}
    return {"y": ys, "dx": dxs, "dweight": weight.grad, "dbias": bias.grad, **buffers}


def by_layer(
    batches: list[Tensor], grads: list[Tensor], options: dict[str, Any], masks: list[Tensor | None]
) -> dict[str, Any]:
    """Results of the layer with the options' limits. β changes slightly at each step, for the count."""
    layer = syncbn.norm_layer("batch_renorm", momentum=MOMENTUM, eps=EPS, **options)(3).double()
    with torch.no_grad():
        layer.weight.fill_(1.5), layer.bias.fill_(0.5)
    ys, dxs = [], []
    for x, dy, mask in zip(batches, grads, masks, strict=True):
        x = x.clone().requires_grad_()
        y = layer(x, mask)
        (y * dy).sum().backward()
        ys.append(y.detach())
        dxs.append(x.grad)
        with torch.no_grad():
            layer.bias.add_(1e-13)
    buffers = {"running_mean": layer.running_mean, "running_var": layer.running_var}
    return {"y": ys, "dx": dxs, "dweight": layer.weight.grad, "dbias": layer.bias.grad, **buffers}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[int], dict[str, Any], list[tuple[float, float]], int]:
    """Sizes of the ranks' batches, spatial shape, options, their limits at each of 4 steps, and a seed."""
    world_size = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(0, 4), min_size=world_size, max_size=world_size).filter(lambda s: sum(s) >= 2))
    spatial = draw(st.lists(st.integers(1, 3), max_size=2))
    r_max, d_max = draw(st.sampled_from([(1.0, 0.0), (1.3, 0.4), (3.0, 5.0), (1e6, 1e6)]))
    start = draw(st.integers(0, 2))
    ends = draw(st.lists(st.integers(start, 4), min_size=2, max_size=2))
    options = {"r_max": r_max, "d_max": d_max, "start_step": start, "r_max_step": ends[0], "d_max_step": ends[1]}
    ramps = [[1.0 if t >= end else max(0, t - start) / max(end - start, 1) for end in ends] for t in range(4)]
    return sizes, spatial, options, [(1 + (r_max - 1) * r, d_max * d) for r, d in ramps], draw(st.integers(0, 1000))


def on_rank(
    batches: list[Tensor], grads: list[Tensor], sizes: list[int], options: dict[str, Any], mask: Tensor | None
) -> dict[str, Any]:
    rank = dist.get_rank()
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    masks = [None if mask is None else mask[rows]] * len(batches)
    return by_layer([x[rows] for x in batches], [dy[rows] for dy in grads], options, masks)


def joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    for other in results[1:]:
        for name in ("running_mean", "running_var"):
            assert torch.equal(other[name], results[0][name])
    split = {
        name: [torch.cat(parts) for parts in zip(*(r[name] for r in results), strict=True)] for name in ("y", "dx")
    }
    sums = {name: sum(r[name] for r in results) for name in ("dweight", "dbias")}
    return {**results[0], **split, **sums}


@pytest.mark.distributed
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases(), masked=st.booleans())
def test_it_is_the_formula_over_any_split(case: Any, masked: bool, ranks: Callable[[int], Ranks]) -> None:
    sizes, spatial, options, limits, seed = case
    batches = [batch(seed + step, sum(sizes), *spatial) for step in range(4)]
    grads = [random(seed + 50 + step, sum(sizes), 3, *spatial) for step in range(4)]
    mask = random(seed, sum(sizes), *spatial) > -0.3 if masked else None
    if mask is not None:
        mask.view(-1)[:2] = True
    expected = by_formula(batches, grads, limits, mask)
    if len(sizes) == 1:
        got = by_layer(batches, grads, options, [mask] * 4)
    else:
        got = joined(ranks(len(sizes)).run(on_rank, batches, grads, sizes, options, mask))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_without_correction_it_is_sync_to_the_last_bit() -> None:
    renorm, sync = (syncbn.norm_layer(n, **o)(3) for n, o in (("batch_renorm", {"r_max": 1, "d_max": 0}), ("sync", {})))
    renorm.start_step = renorm.r_max_step = renorm.d_max_step = 0
    for seed in range(3):
        x = batch(seed, 5, 4, 4).float()
        outputs = []
        for layer in (renorm, sync):
            inputs = x.clone().requires_grad_()
            y = layer(inputs)
            y.pow(3).sum().backward()
            outputs.append((y, inputs.grad, layer.weight.grad, layer.running_var))
        torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_training_is_evaluation_where_nothing_is_clipped() -> None:
    layer = syncbn.norm_layer("batch_renorm", r_max=1e9, d_max=1e9, **AT_ONCE)(3).double()
    for seed in range(3):
        layer(batch(seed, 6, 2))
    x = batch(5, 6, 2)
    torch.testing.assert_close(copy.deepcopy(layer).eval()(x), layer(x))


# --- the schedule -----------------------------------------------------------------------------------------------------


def model(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    steps = {"start_step": 2, "r_max_step": 8, "d_max_step": 6}
    return nn.Sequential(nn.Conv2d(3, 4, 1), BatchRenorm(4, **{**steps, **options}), nn.ReLU(), nn.Conv2d(4, 2, 1))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, accumulate: int = 1, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            net(batch(10 * step + part, 4, 3, 3).float()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_optimizer_steps_count_and_forward_passes_do_not(accumulate: int, make: type[torch.optim.Optimizer]) -> None:
    net = model()
    train(net, make(net.parameters(), lr=0.01), 5, accumulate)
    assert net[1].num_steps == 5
    net(batch(0, 4, 3, 3).float())
    assert net[1].num_steps == 6, "the sixth state of the parameters: five steps were made"
    net(batch(1, 4, 3, 3).float())
    net.eval()(batch(2, 4, 3, 3).float())
    assert net[1].num_steps == 6


@pytest.mark.parametrize("bias", [True, False])
def test_the_limits_widen_in_straight_lines(bias: bool) -> None:
    net = model(r_max=4.0, bias=bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    seen = []
    for step in range(10):
        train(net, optimizer, 1, accumulate=2, first=step)
        seen.append(torch.stack(net[1].limits(net[1].num_steps - 1)))
    expected = [[1 + 3 * min(max(t - 2, 0) / 6, 1), 5 * min(max(t - 2, 0) / 4, 1)] for t in range(10)]
    torch.testing.assert_close(torch.stack(seen), torch.tensor(expected))


@pytest.mark.parametrize("options", [{"affine": False}, {}], ids=["no affine", "frozen affine"])
def test_without_trainable_affine_forward_passes_count(options: dict[str, Any]) -> None:
    net = model(r_max=1e3, d_max=1e3, start_step=0, r_max_step=2, d_max_step=2, **options)
    net[1].requires_grad_(False)
    for seed in range(2):
        net(batch(seed, 4, 3, 3).float())
    x = torch.randn(4, 4, 3, 3) + 3
    torch.testing.assert_close(copy.deepcopy(net[1]).eval()(x), net[1](x), msg="the third pass has the last limits")


def test_a_resumed_run_goes_on_with_the_count() -> None:
    def run(interrupt: bool) -> dict[str, Any]:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        train(net, optimizer, 5, accumulate=2)
        if interrupt:
            file = io.BytesIO()
            torch.save([net.state_dict(), optimizer.state_dict()], file)
            file.seek(0)
            net = model()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
            for target, state in zip((net, optimizer), torch.load(file, weights_only=True), strict=True):
                target.load_state_dict(state)
        train(net, optimizer, 5, accumulate=2, first=5)
        return net.state_dict()

    torch.testing.assert_close(run(interrupt=True), run(interrupt=False), rtol=0, atol=0)


def test_a_checkpoint_of_batch_normalization_starts_the_schedule() -> None:
    net, plain = model(), nn.BatchNorm2d(4)
    plain(torch.randn(4, 4, 2, 2))
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), 3)
    net[1].load_state_dict(plain.state_dict())
    assert torch.equal(net[1].running_var, plain.running_var)
    with pytest.raises(RuntimeError, match=r"Missing key.*num_steps"):
        net[1].load_state_dict({**plain.state_dict(), "counted": torch.zeros(4)})


def test_conversion_starts_the_schedule_and_keeps_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.2))
    net(torch.randn(4, 3, 2, 2))
    running_var = net[1].running_var.clone()
    syncbn.convert(net, "batch_renorm", r_max=2.0)
    assert net[1].momentum == 0.2
    assert torch.equal(net[1].running_var, running_var)
    net(torch.randn(4, 3, 2, 2)).sum().backward()
    assert net[1].num_steps == 1
    assert list(syncbn.revert(net)[1].state_dict()) == list(nn.BatchNorm2d(4).state_dict())


def test_checkpointing_repeats_the_last_pass_or_says_that_it_can_not() -> None:
    net, reference = model(**AT_ONCE), model(**AT_ONCE)
    for seed in range(3):
        x = batch(seed, 4, 3, 3).float()
        checkpoint(net, x, use_reentrant=False).square().sum().backward()
        reference(x).square().sum().backward()
    for got, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    torch.testing.assert_close(net.state_dict(), reference.state_dict())
    first, _ = (checkpoint(net, batch(seed, 4, 3, 3).float(), use_reentrant=False) for seed in range(2))
    with pytest.raises(NotImplementedError, match="a forward pass that isn't this layer's last"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max must be at least 1"),
        ({"d_max": -1.0}, "d_max at least 0"),
        ({"r_max": float("nan")}, "r_max must be at least 1"),
        ({"start_step": -1}, "start_step must be at least 0"),
        ({"start_step": 30_000}, "come before r_max_step and d_max_step, got 30000, 40000 and 25000"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchRenorm(3, **options)
