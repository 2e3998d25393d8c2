"""The README's comparison with torch.nn.SyncBatchNorm: a test for each cell."""

import csv
import functools
import re
import types
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.utils.checkpoint import checkpoint

import syncbn
from tests.docs import torch_on_cpu
from tests.docs.markdown import REPOSITORY
from tests.norm.core.shared import asked_for
from tests.ranks import Ranks

CELLS = {
    "CPU ranks": ("yes", "refused"),
    "unequal and empty batches": ("exact", "exact; an empty batch in half precision fails"),
    "second derivatives": ("exact across ranks, in eager mode", "not implemented"),
    "`torch.compile(fullgraph=True)`": ("yes", "fails: its kernels can't be traced"),
    "masks for padding": ("`layer(x, mask=mask)`", "no"),
    "activation checkpointing": ("running statistics move once a step", "they move twice"),
    "conversion": (
        "in place: hooks and shared layers stay; a subclass with a `forward` of its own is refused by name",
        "hooks and such a `forward` are lost; a shared layer is converted in one of its places",
    ),
    "conversion back": ("`revert`: the same classes and objects", "no"),
    "messages of a layer, forward and backward": (
        "2C + 1 and 2C float64 numbers, summed",
        "2C + 1 numbers from each rank to each, and 2C, summed",
    ),
    "cost, ResNet-50 on two CPU ranks": (
        "a step takes 0.98 (0.97–1.00) of the time with `nn.BatchNorm2d`",
        "doesn't run there",
    ),
}
SIZES = (5, 0, 2)
pytestmark = pytest.mark.distributed


def test_the_table_says_what_is_tested() -> None:
    section = (REPOSITORY / "README.md").read_text().partition("## Beside `torch.nn.SyncBatchNorm`\n")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert {name: (ours, theirs) for name, ours, theirs in rows} == CELLS


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, sum(SIZES), 4, 3, generator=generator, dtype=torch.float64)
    return (3 * x + 1).to(dtype), weights.to(dtype)


def results(
    forward: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor, weights: Tensor, order: int
) -> list[Tensor]:
    """Output, input gradients up to an order, and running statistics."""
    x = x.clone().requires_grad_()
    y = forward(x)
    value, found = (y * weights).sum(), [y.detach()]
    for _ in range(order):
        (gradient,) = torch.autograd.grad(value, x, create_graph=order > 1, materialize_grads=True)
        found.append(gradient.detach())
        value = gradient.pow(2).sum()
    return [*found, layer.running_mean.clone(), layer.running_var.clone()]


def of_a_rank(kind: str) -> list[Tensor]:
    x, weights = (tensor.split(SIZES)[dist.get_rank()] for tensor in batch())
    if kind == "torch":
        layer: nn.Module = nn.SyncBatchNorm(4).double()
        with torch_on_cpu.kernels():
            forward = lambda x: torch_on_cpu.forward(layer, x, dist.group.WORLD, dist.get_world_size())  # noqa: E731
            return results(forward, layer, x, weights, order=1)
    layer = syncbn.SyncBatchNorm(4).double()
    forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if kind == "compiled" else layer
    return results(forward, layer, x, weights, order=2 if kind == "ours" else 1)


@pytest.mark.parametrize("kind", ["ours", "compiled", "torch"])
def test_unequal_and_empty_batches_second_derivatives_and_compilation(kind: str, ranks: Callable[[int], Ranks]) -> None:
    found = ranks(3).run(of_a_rank, kind)
    layer = nn.BatchNorm1d(4).double()
    *by_sample, mean, var = results(layer, layer, *batch(), order=2)
    for of_all, of_ranks in zip(by_sample, zip(*(of_one[:-2] for of_one in found), strict=True), strict=False):
        torch.testing.assert_close(torch.cat(of_ranks), of_all, rtol=1e-10, atol=1e-12)
    for *_, rank_mean, rank_var in found:
        torch.testing.assert_close((rank_mean, rank_var), (mean, var), rtol=1e-10, atol=1e-12)


def refusal() -> str:
    with pytest.raises(ValueError, match="expected input tensor to be on") as error:
        nn.SyncBatchNorm(4)(torch.randn(3, 4))
    return str(error.value)


def test_torch_refuses_cpu_ranks(ranks: Callable[[int], Ranks]) -> None:
    assert "on GPU" in ranks(2).run(refusal)[0]


@pytest.fixture
def theirs() -> Iterator[tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    """torch's layer as one of two ranks with the same samples, and its messages."""
    layer, sent = nn.SyncBatchNorm(4), []
    group = types.SimpleNamespace(_get_backend_name=lambda: "gloo")

    def all_gather(parts: list[Tensor], part: Tensor, *_: object, **__: object) -> None:
        sent.append(part.clone())
        for received in parts:
            received.copy_(part)

    def all_reduce(buffer: Tensor, *_: object, **__: object) -> None:
        sent.append(buffer.clone())
        buffer.mul_(2)

    with (
        torch_on_cpu.kernels(),
        mock.patch.object(dist, "all_gather", all_gather),
        mock.patch.object(dist, "all_reduce", all_reduce),
    ):
        yield (lambda x: torch_on_cpu.forward(layer, x, group, 2)), sent


def test_torchs_messages(theirs: tuple[Callable[[Tensor], Tensor], list[Tensor]]) -> None:
    forward, sent = theirs
    forward(batch(torch.float32)[0].requires_grad_()).sum().backward()
    assert [message.numel() for message in sent] == [2 * 4 + 1, 2 * 4]


def our_messages() -> list[tuple[int, torch.dtype]]:
    sent: list[tuple[int, torch.dtype]] = []
    all_reduce = dist.all_reduce

    def recorded(buffer: Tensor, *args: object, **options: object) -> object:
        sent.append((buffer.numel(), buffer.dtype))
        return all_reduce(buffer, *args, **options)

    with asked_for("collective"):
        layer = syncbn.SyncBatchNorm(4, process_group=dist.new_group())
        x = torch.randn(2, 4, 3, requires_grad=True)
        layer(x)  # the ranks agree on how they sum
        with mock.patch.object(dist, "all_reduce", recorded):
            layer(x).sum().backward()
    return sent


def test_our_messages(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(our_messages) == 2 * [[(2 * 4 + 1, torch.float64), (2 * 4, torch.float64)]]


def test_torchs_empty_batch_in_half_precision_sends_another_size_than_its_peers(
    theirs: tuple[Callable[[Tensor], Tensor], list[Tensor]],
) -> None:
    forward, sent = theirs
    forward(batch(torch.float16)[0])
    forward(batch(torch.float16)[0][:0])
    assert [message.dtype for message in sent] == [torch.float32, torch.float16]


def test_torch_has_no_second_derivative(theirs: tuple[Callable[[Tensor], Tensor], list[Tensor]]) -> None:
    forward, _ = theirs
    x = batch(torch.float32)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(forward(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_norm_backward_elemt is not implemented"):
        torch.autograd.grad(gradient.pow(2).sum(), x)


def traced() -> str:
    layer, x = nn.SyncBatchNorm(4), batch(torch.float32)[0]
    with torch_on_cpu.kernels(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about all_gather
        forward = functools.partial(torch_on_cpu.forward, layer, group=dist.group.WORLD, world_size=2)
        forward(x)
        with pytest.raises(Unsupported) as error:
            torch.compile(forward, fullgraph=True, backend="eager")(x)
    return str(error.value)


def test_torchs_kernels_cannot_be_traced(ranks: Callable[[int], Ranks]) -> None:
    for message in ranks(2).run(traced):
        reasons = ("unsupported operator: aten.batch_norm_gather_stats_with_counts", "running with fake tensors")
        assert any(reason in message for reason in reasons), message


def test_masks() -> None:
    x, mask = batch()[0], torch.tensor([[True, True, False]]).expand(sum(SIZES), 3)
    y = syncbn.SyncBatchNorm(4).double()(x, mask=mask)
    torch.testing.assert_close(y[..., :2], nn.BatchNorm1d(4).double()(x[..., :2]))
    with pytest.raises(TypeError, match="mask"):
        nn.SyncBatchNorm(4).double()(x, mask=mask)


@pytest.mark.parametrize(("layer", "times"), [(syncbn.SyncBatchNorm(4), 1), (nn.SyncBatchNorm(4), 2)])
def test_activation_checkpointing(layer: nn.Module, times: int) -> None:
    x = batch(torch.float32)[0].requires_grad_()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert layer.num_batches_tracked == times


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def model() -> nn.Sequential:
    shared = nn.BatchNorm2d(3)
    shared.register_forward_hook(lambda module, args, output: output + 1)
    return nn.Sequential(shared, nn.ReLU(), shared)


def test_our_conversion_and_back() -> None:
    net = model()
    layer, weight = net[0], net[0].weight
    syncbn.convert(net, "sync")
    assert type(net[0]) is syncbn.SyncBatchNorm
    assert net[0] is net[2]
    assert net[0].weight is weight
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(net(x), model()(x))
    assert syncbn.revert(net)[0] is layer
    with pytest.raises(ValueError, match="Doubled"):
        syncbn.convert(nn.Sequential(Doubled(3)), "sync")


def test_torchs_conversion() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(model())
    assert [type(net[place]) for place in (0, 2)] == [nn.SyncBatchNorm, nn.BatchNorm2d]
    assert not net[0]._forward_hooks
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(Doubled(3))) is nn.SyncBatchNorm
    assert not [name for name in dir(nn.SyncBatchNorm) if "revert" in name]


def test_cost() -> None:
    with (REPOSITORY / "docs" / "results" / "performance.csv").open() as file:
        (row,) = [
            row for row in csv.DictReader(file) if "step of ResNet-50, 8" in row["area"] and row["what"] == "norm=sync"
        ]
    measured = "{:.2f} ({:.2f}–{:.2f})".format(*(float(row[name]) for name in ("ratio", "low", "high")))
    assert measured in CELLS["cost, ResNet-50 on two CPU ranks"][0]
