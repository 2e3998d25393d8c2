"""Second and third derivatives across ranks, torch.func transforms and forward mode."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import syncbn
from tests.norm import oracle, steps
from tests.norm.steps import Batch
from tests.norm.test_sync import random_batch
from tests.ranks import Ranks


def chain(order: int, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Derivatives up to `order`, each of a sum over samples of the last one's: a gradient penalty where order is 2.

    Sums over samples, so that the ranks' values add up to the one-process value.
    """
    value, gradients = y.pow(3).sum(), []
    for _ in range(order - 1):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        gradients.append(gradient.detach())
        value = gradient.square().sum() + gradient.sin().sum()
    return [*gradients, *torch.autograd.grad(value, (x, weight, bias))]


def chain_on_rank(batch: Batch, order: int) -> list[Tensor]:
    x, _, mask = batch.share(dist.get_rank())
    layer = steps.layer_for(batch)
    return chain(order, layer(x.requires_grad_(), mask), x, layer.weight, layer.bias)


def chain_in_one_process(batch: Batch, order: int) -> list[Tensor]:
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (batch.x, batch.weight, batch.bias))
    return chain(order, oracle.normalize(x, weight, bias, mask=batch.mask), x, weight, bias)


@pytest.mark.distributed
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [[3, 5], [1, 0, 6]], ids=str)
def test_derivatives_equal_one_process(
    ranks: Callable[[int], Ranks], order: int, masked: bool, sizes: list[int]
) -> None:
    batch = random_batch(order, [3, 2], sizes)
    batch.x = batch.x / 2
    if masked:
        batch.mask = torch.rand(sum(sizes), 2, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = chain_in_one_process(batch, order)
    results = ranks(len(sizes)).run(chain_on_rank, batch, order)
    for i, target in enumerate(expected):
        shares = [result[i] for result in results]
        got = torch.cat(shares) if target.dim() > 1 else sum(shares)
        torch.testing.assert_close(got, target, rtol=1e-9, atol=1e-9, msg=lambda m, i=i: f"derivative {i}: {m}")


def test_torch_func_grad_and_jacrev() -> None:
    layer = syncbn.SyncBatchNorm(3, track_running_stats=False).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(
        lambda x: oracle.normalize(x, torch.ones(3).double(), torch.zeros(3).double()), x
    )
    torch.testing.assert_close(torch.func.jacrev(layer)(x), expected)
    weights = torch.randn_like(x)
    torch.testing.assert_close(
        torch.func.grad(lambda x: (layer(x) * weights).sum())(x),
        (expected * weights[..., None, None, None]).sum((0, 1, 2)),
    )


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("vmap", lambda layer, x: torch.func.vmap(layer)(x[None])),
        ("jvp", lambda layer, x: torch.func.jvp(layer, (x,), (x,))),
        ("vmap|jvp", lambda layer, x: torch.func.jacfwd(layer)(x)),
    ],
)
def test_other_transforms_are_refused_by_name(name: str, call: Callable[..., object]) -> None:
    layer, x = syncbn.SyncBatchNorm(3, track_running_stats=False), torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match=rf"torch\.func\.({name}).*use grad, vjp or jacrev"):
        call(layer, x)


def test_transforms_refuse_running_statistics_but_not_eval_mode() -> None:
    layer, x = syncbn.SyncBatchNorm(3), torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="running statistics can't be updated"):
        torch.func.grad(lambda x: layer(x).sum())(x)
    layer.eval()
    torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], layer(x))


def test_forward_mode_is_refused() -> None:
    layer, x = syncbn.SyncBatchNorm(3), torch.randn(4, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def func_grad_on_rank(batch: Batch) -> Tensor:
    x, dy, _ = batch.share(dist.get_rank())
    layer = steps.layer_for(batch)
    return torch.func.grad(lambda x: (layer(x) * dy).sum())(x).detach()


@pytest.mark.distributed
def test_torch_func_grad_across_ranks(ranks: Callable[[int], Ranks]) -> None:
    batch = random_batch(3, [4, 3], [2, 4], options={"track_running_stats": False})
    expected = oracle.training_step(batch.x, batch.dy, batch.weight, batch.bias)
    torch.testing.assert_close(torch.cat(ranks(2).run(func_grad_on_rank, batch)), expected.dx)


@pytest.mark.slow
def test_a_compiled_layer_refuses_a_second_derivative() -> None:
    torch.compiler.reset()
    layer = torch.compile(syncbn.SyncBatchNorm(3).double(), fullgraph=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.square().sum().backward()
