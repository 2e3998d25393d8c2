"""Batch normalization with a learnable momentum: its formula, and the momentum's gradient against numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.norm import LearnableMomentumBatchNorm
from syncbn.norm.surgery.momentum import set_momentum
from tests.ranks import Ranks

EPS = 1e-5
NAMES = ("weight", "bias", "momentum_logit")


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batches(seed: int, samples: int, *spatial: int) -> list[Tensor]:
    return [random(seed + i, samples, 3, *spatial) * (1 + i) + i for i in range(3)]


def starting_parameters() -> dict[str, Tensor]:
    return {"weight": random(1, 3), "bias": random(2, 3), "momentum_logit": torch.tensor([-0.4]).double()}


def by_formula(xs: list[Tensor], dys: list[Tensor], masks: list[Tensor | None]) -> dict[str, Any]:
    """Three batches, all gradients of Σ y·dy, and the running statistics."""
    p = {name: value.requires_grad_() for name, value in starting_parameters().items()}
    inputs = [x.clone().requires_grad_() for x in xs]
    running_mean, running_var = torch.zeros(3).double(), torch.ones(3).double()
    m = 1 / (1 + torch.exp(-p["momentum_logit"]))
    ys = []
    for x, mask in zip(inputs, masks, strict=True):
        columns = x.movedim(1, 0).flatten(1) if mask is None else x.movedim(1, 0)[:, mask]
        mean = (1 - m) * running_mean.detach() + m * columns.mean(1)
        var = (1 - m) * running_var.detach() + m * columns.var(1)
        running_mean, running_var = mean, var
        shape = (3, *[1] * (x.dim() - 2))
        y = (x - mean.view(shape)) / (var + EPS).sqrt().view(shape) * p["weight"].view(shape) + p["bias"].view(shape)
        ys.append(y if mask is None else torch.where(mask.unsqueeze(1), y, 0))
    total = sum((y * dy).sum() for y, dy in zip(ys, dys, strict=True))
    *dxs, dweight, dbias, dlogit = torch.autograd.grad(total, [*inputs, *p.values()])
    grads = dict(zip(NAMES, (dweight, dbias, dlogit), strict=True))
    return {"y": ys, "dx": dxs, **grads, "running_mean": running_mean, "running_var": running_var}


def by_layer(xs: list[Tensor], dys: list[Tensor], masks: list[Tensor | None]) -> dict[str, Any]:
    layer = LearnableMomentumBatchNorm(3, eps=EPS).double()
    layer.load_state_dict({**layer.state_dict(), **starting_parameters()})
    inputs = [x.clone().requires_grad_() for x in xs]
    ys = [layer(x, mask) for x, mask in zip(inputs, masks, strict=True)]
    sum((y * dy).sum() for y, dy in zip(ys, dys, strict=True)).backward()
    grads = {name: layer.get_parameter(name).grad for name in NAMES}
    running = {"running_mean": layer.running_mean, "running_var": layer.running_var}
    return {"y": [y.detach() for y in ys], "dx": [x.grad for x in inputs], **grads, **running}


def on_rank(xs: list[Tensor], dys: list[Tensor], masks: list[Tensor | None], sizes: list[int]) -> dict[str, Any]:
    rank = dist.get_rank()
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return by_layer(*([None if t is None else t[rows] for t in part] for part in (xs, dys, masks)))


def joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    for other in results[1:]:
        for name in ("running_mean", "running_var"):
            assert torch.equal(other[name], results[0][name])
    split = {
        name: [torch.cat(parts) for parts in zip(*(r[name] for r in results), strict=True)] for name in ("y", "dx")
    }
    return {**results[0], **split, **{name: sum(r[name] for r in results) for name in NAMES}}


@pytest.mark.distributed
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(lambda s: sum(s) >= 2),
    spatial=st.lists(st.integers(1, 3), max_size=2),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_the_formula_over_any_split(
    sizes: list[int], spatial: list[int], masked: bool, seed: int, ranks: Callable[[int], Ranks]
) -> None:
    xs, dys = batches(seed, sum(sizes), *spatial), batches(seed + 7, sum(sizes), *spatial)
    masks: list[Tensor | None] = [None] * 3
    if masked:
        masks = [x[:, 0] > x[:, 0].mean() - 1 for x in xs]
        for mask in masks:
            mask.view(-1)[:2] = True
    one_process = len(sizes) == 1
    got = by_layer(xs, dys, masks) if one_process else joined(ranks(len(sizes)).run(on_rank, xs, dys, masks, sizes))
    torch.testing.assert_close(got, by_formula(xs, dys, masks), rtol=1e-9, atol=1e-9)


def loss_at(logit: float, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """A loss of the second batch, as a function of the momentum's logit in it, and its derivative."""
    layer = LearnableMomentumBatchNorm(3).double()
    first, second, _ = batches(0, 5, 2)
    layer(first)
    with torch.no_grad():
        layer.momentum_logit.fill_(logit)
    loss = layer(second).sin().sum()
    return loss, torch.autograd.grad(loss, layer.momentum_logit, create_graph=create_graph)[0]


@pytest.mark.parametrize("logit", [-3.0, -1.0, 0.0, 2.0])
def test_the_gradient_of_the_momentum_is_the_difference_quotient(logit: float) -> None:
    step = 1e-5
    numerical = (loss_at(logit + step)[0] - loss_at(logit - step)[0]) / (2 * step)
    gradient = loss_at(logit)[1]
    assert gradient.abs() > 1e-3
    torch.testing.assert_close(gradient, numerical.view(1), rtol=1e-7, atol=1e-9)


def test_second_derivatives() -> None:
    layer = LearnableMomentumBatchNorm(3).double()
    layer(batches(0, 5, 2)[0])

    def output(x: Tensor, logit: Tensor) -> Tensor:
        return torch.func.functional_call(copy.deepcopy(layer), {"momentum_logit": logit}, (x,))

    x = random(5, 4, 3, 2).requires_grad_()
    logit = layer.momentum_logit.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(output, (x, logit))
    assert torch.autograd.gradgradcheck(output, (x, logit))


def test_training_gives_what_evaluation_gives_after_it() -> None:
    layer = LearnableMomentumBatchNorm(3, momentum=0.3).double()
    for x in batches(0, 6, 4):
        y = layer(x)
        torch.testing.assert_close(copy.deepcopy(layer).eval()(x), y)


def test_a_momentum_near_one_is_batch_normalization_with_the_unbiased_variance() -> None:
    layer = LearnableMomentumBatchNorm(3, momentum=1 - 1e-12, eps=1e-12).double()
    (x, _, _) = batches(3, 400, 2)
    torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, training=True, eps=1e-12) * (799 / 800) ** 0.5)


def test_the_momentum_starts_where_it_is_told_and_is_learned() -> None:
    net = nn.Sequential(nn.Linear(4, 3), LearnableMomentumBatchNorm(3, momentum=0.25))
    assert net[1].learned_momentum.item() == pytest.approx(0.25)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for seed in range(4):
        optimizer.zero_grad()
        net(random(seed, 6, 4).float()).sin().sum().backward()
        optimizer.step()
    assert abs(net[1].learned_momentum.item() - 0.25) > 1e-3
    assert 0 < net[1].learned_momentum.item() < 1


def test_conversion_takes_the_momentum_and_gives_the_statistics_back() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3))
    original = net[0]
    syncbn.convert(net, "learnable_momentum")
    assert net[0].learned_momentum.item() == pytest.approx(0.3)
    net(random(0, 5, 3).float())
    statistics = net[0].running_mean.clone(), net[0].running_var.clone()
    assert syncbn.revert(net)[0] is original
    torch.testing.assert_close((original.running_mean, original.running_var), statistics)
    assert list(original.state_dict()) == list(nn.BatchNorm1d(3).state_dict())


def test_a_momentum_for_the_whole_model_leaves_it_alone() -> None:
    net = nn.Sequential(LearnableMomentumBatchNorm(3), nn.BatchNorm1d(3))
    set_momentum(net, 0.5)
    assert (net[0].momentum, net[1].momentum) == (0.1, 0.5)
    assert net[0].learned_momentum.item() == pytest.approx(0.1)


def test_a_checkpoint_of_batch_normalization_loads() -> None:
    layer, plain = LearnableMomentumBatchNorm(3, momentum=0.2), nn.BatchNorm1d(3)
    plain(random(0, 5, 3).float())
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.running_var, plain.running_var)
    assert layer.learned_momentum.item() == pytest.approx(0.2)


@pytest.mark.parametrize("momentum", [0, 1, 0.0, 1.0, -0.1, 1.5, None, float("nan")])
def test_wrong_momentum(momentum: float | None) -> None:
    with pytest.raises(ValueError, match=f"a momentum that is learned starts between 0 and 1, got {momentum}"):
        LearnableMomentumBatchNorm(3, momentum=momentum)
