"""Adaptive batch normalization against a separate batch normalization for each domain."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm import AdaptiveBatchNorm, domain, set_domain
from tests.ranks import Ranks

DOMAINS = 3


def batch(seed: int, where: int, samples: int = 6) -> Tensor:
    """Samples of a domain: each has a mean and a scale."""
    x = torch.randn(samples, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * (1 + where) + 10 * where


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 5, 1), AdaptiveBatchNorm(5, DOMAINS), nn.ReLU(), AdaptiveBatchNorm(5, DOMAINS))


def seen(net: nn.Module, where: int) -> list[Tensor]:
    """Statistics of a domain, without changes."""
    with domain(net, where):
        return [
            getattr(layer, name).clone()
            for layer in net.modules()
            if isinstance(layer, AdaptiveBatchNorm)
            for name in ("running_mean", "running_var", "num_batches_tracked")
        ]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(visits=st.lists(st.integers(0, DOMAINS - 1), max_size=12), momentum=st.sampled_from([0.1, None]))
def test_every_domain_is_a_batch_normalization_of_its_own(visits: list[int], momentum: float | None) -> None:
    layer = AdaptiveBatchNorm(4, DOMAINS, momentum=momentum).double()
    alone = [nn.BatchNorm1d(4, momentum=momentum).double() for _ in range(DOMAINS)]
    for other in alone:
        other.weight, other.bias = layer.weight, layer.bias
    for seed, where in enumerate(visits):
        x = batch(seed, where)
        if seed % 2:
            y = layer(x, domain=where)
        else:
            set_domain(layer, where)
            y = layer(x)
        torch.testing.assert_close(y, alone[where](x))
    layer.eval()
    for where in range(DOMAINS):
        torch.testing.assert_close(layer(batch(99, where), domain=where), alone[where].eval()(batch(99, where)))
        reference = [alone[where].running_mean, alone[where].running_var, alone[where].num_batches_tracked]
        torch.testing.assert_close(seen(layer, where), reference)


def test_the_others_do_not_move_by_a_bit() -> None:
    net = model().double()
    for where in range(DOMAINS):
        with domain(net, where):
            net(batch(where, where))
    before = [seen(net, where) for where in range(DOMAINS)]
    set_domain(net, 1)
    net(batch(5, 1)).sum().backward()
    for where in (0, 2):
        torch.testing.assert_close(seen(net, where), before[where], rtol=0, atol=0)
    assert not torch.equal(seen(net, 1)[0], before[1][0])


def test_the_context_ends_where_it_began_also_after_an_error() -> None:
    net = model()
    net[1].set_domain(2)
    with domain(net, 1):
        with domain(net, 0):
            assert net[3].domain == 0
        assert [net[1].domain, net[3].domain] == [1, 1]
    assert [net[1].domain, net[3].domain] == [2, 0]
    with pytest.raises(ValueError, match="expected an input"), domain(net, 1):
        net[1](torch.randn(5))
    assert [net[1].domain, net[3].domain] == [2, 0]
    with pytest.raises(ValueError, match="expected 5 channels"):
        net[1](torch.randn(2, 7, 3), domain=1)
    assert net[1].domain == 2


def test_a_checkpoint_has_all_domains_wherever_it_is_loaded() -> None:
    net, file = model().double(), io.BytesIO()
    for where in range(DOMAINS):
        set_domain(net, where)
        net(batch(where, where))
    torch.save(net.state_dict(), file)
    for assign in (False, True):
        file.seek(0)
        loaded = model().double()
        set_domain(loaded, 1)
        loaded.load_state_dict(torch.load(file, weights_only=True), assign=assign)
        for where in (1, 0, 2):
            torch.testing.assert_close(seen(loaded, where), seen(net, where), rtol=0, atol=0)
            with domain(net, where), domain(loaded, where):
                x = batch(9, where)
                assert torch.equal(copy.deepcopy(loaded).eval()(x), copy.deepcopy(net).eval()(x))


def test_every_domain_starts_with_what_a_batch_normalization_has_seen() -> None:
    plain = nn.BatchNorm1d(4, momentum=0.3).double()
    plain(batch(0, 2))
    loaded = AdaptiveBatchNorm(4, DOMAINS).double()
    loaded.load_state_dict(plain.state_dict())
    converted = syncbn.convert(copy.deepcopy(plain), "adaptive", domains=DOMAINS)
    assert converted.momentum == 0.3
    for layer in (loaded, converted):
        for where in range(DOMAINS):
            torch.testing.assert_close(seen(layer, where), list(plain.buffers()), rtol=0, atol=0)


def test_revert_gives_the_current_domain() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4).double())
    original = net[0]
    syncbn.convert(net, "adaptive")
    with domain(net, 1):
        net(batch(0, 1))
    expected = seen(net, 1)
    net(batch(1, 0))
    set_domain(net, 1)
    assert syncbn.revert(net)[0] is original
    torch.testing.assert_close(list(original.buffers()), expected, rtol=0, atol=0)


def test_a_half_layer_keeps_all_domains() -> None:
    layer = AdaptiveBatchNorm(4, DOMAINS)
    layer(batch(0, 2).float(), domain=2)
    layer(batch(1, 0).float())
    before = [seen(layer, where) for where in range(DOMAINS)]
    layer.half()
    assert layer.weight.dtype == torch.float16
    torch.testing.assert_close([seen(layer, where) for where in range(DOMAINS)], before, rtol=0, atol=0)


def test_a_compiled_model_serves_all_domains_with_one_graph() -> None:
    net, reference = model().double(), model().double()
    torch.compiler.reset()
    forward = torch.compile(net, backend="aot_eager", fullgraph=True)
    forward(batch(0, 0)), reference(batch(0, 0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for where in (1, 2, 1, 0):
            with domain(net, where), domain(reference, where):
                torch.testing.assert_close(forward(batch(where, where)), reference(batch(where, where)))
    torch.testing.assert_close(net.state_dict(), reference.state_dict())


def test_checkpointed_training_counts_in_the_domain_of_the_forward_pass() -> None:
    net, reference = model().double(), model().double()
    for where in (1, 2):
        with domain(net, where), domain(reference, where):
            y = checkpoint(net, batch(where, where), use_reentrant=False)
            expected = reference(batch(where, where))
        for output in (y, expected):
            output.sin().sum().backward()
    torch.testing.assert_close(net.state_dict(), reference.state_dict(), rtol=0, atol=0)
    for got, target in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, target.grad)


def on_rank(visits: list[int], sizes: list[int]) -> tuple[list[Tensor], dict[str, Any]]:
    rank = dist.get_rank()
    net = model().double()
    outputs = []
    for seed, where in enumerate(visits):
        set_domain(net, where)
        x = batch(seed, where, sum(sizes))[sum(sizes[:rank]) :][: sizes[rank]]
        outputs.append(net(x).detach())
    return outputs, net.state_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("sizes", [[2, 5], [4, 0, 1]], ids=str)
def test_ranks_share_the_statistics_of_a_domain(sizes: list[int], ranks: Callable[[int], Ranks]) -> None:
    visits = [0, 2, 0, 1, 2]
    results = ranks(len(sizes)).run(on_rank, visits, sizes)
    net = model().double()
    for seed, where in enumerate(visits):
        set_domain(net, where)
        expected = net(batch(seed, where, sum(sizes)))
        torch.testing.assert_close(torch.cat([outputs[seed] for outputs, _ in results]), expected)
    for _, state in results:
        torch.testing.assert_close(state, net.state_dict())


@pytest.mark.parametrize("wrong", [-1, 3, 1.0, True, "0"])
def test_a_domain_that_there_is_not(wrong: Any) -> None:
    net = nn.Sequential(AdaptiveBatchNorm(4, 9), AdaptiveBatchNorm(4, DOMAINS))
    with pytest.raises(ValueError, match="the domain must be one of 0 to"):
        set_domain(net, wrong)
    assert net[0].domain == 0, "no layer changes"


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="domains must be at least 1, got 0"):
        AdaptiveBatchNorm(4, 0)
    for change in (lambda net: set_domain(net, 0), lambda net: domain(net, 0).__enter__()):
        with pytest.raises(ValueError, match=r"no layer with domains; make some with syncbn\.convert"):
            change(nn.Sequential(nn.BatchNorm1d(4)))
