"""A norm fused with shortcut and activation equals separate layers, in all memory modes."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm.fusion import fused
from syncbn.norm.fusion.deferred import Deferred
from tests.norm import oracle
from tests.norm.fusion.fused_steps import Case, assert_equal, expected, joined, step
from tests.norm.test_sync_derivatives import chain
from tests.ranks import Ranks

MODES = [("keep", 0.0), ("keep", 0.1), ("recompute", 0.0), ("recompute", 0.1), ("invert", 0.1)]
SHORTCUTS = ["none", "identity", "norm"]


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize(("memory", "slope"), MODES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_equals_separate_layers(
    memory: str, slope: float, shortcut: str, channels_last: bool, dtype: torch.dtype, tolerance: float
) -> None:
    case = Case([6], memory, slope, shortcut, dtype, channels_last)
    assert_equal(step(case), expected(case), tolerance)


@pytest.mark.distributed
@pytest.mark.parametrize("sizes", [[3, 5], [1, 0, 6]], ids=str)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize(("memory", "slope"), MODES)
def test_equals_one_process_over_ranks(
    ranks: Callable[[int], Ranks], memory: str, slope: float, shortcut: str, sizes: list[int]
) -> None:
    case = Case(sizes, memory, slope, shortcut)
    assert_equal(joined(ranks(len(sizes)).run(step, case)), expected(case), 1e-12)


@pytest.mark.parametrize("how", ["not reentrant", "reentrant", "compiled"])
@pytest.mark.parametrize(("memory", "slope"), MODES)
def test_checkpointed_and_compiled(memory: str, slope: float, how: str) -> None:
    case = Case([6], memory, slope, "identity", how=how)
    assert_equal(step(case), expected(case), 1e-12)


@pytest.mark.parametrize(("memory", "slope"), MODES)
def test_what_is_masked_is_left_out(memory: str, slope: float) -> None:
    case = Case([6], memory, slope, masked=True)
    assert_equal(step(case), expected(case), 1e-12)


@pytest.mark.parametrize("memory", ["keep", "recompute", "invert"])
def test_without_weight_and_bias(memory: str) -> None:
    layer = syncbn.SyncBatchNorm(3, affine=False, fuse_activation=True, memory=memory).double()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    (got,) = torch.autograd.grad(F.leaky_relu(layer(x)), x, dy)
    y = oracle.normalize(x, torch.ones(3).double(), torch.zeros(3).double())
    torch.testing.assert_close(got, torch.autograd.grad(F.leaky_relu(y), x, dy)[0])


@pytest.mark.parametrize("memory", ["keep", "recompute", "invert"])
def test_autocast(memory: str) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)
    x = torch.randn(4, 3, 9, 9)
    grads = []
    for options in ({}, {"fuse_activation": True, "memory": memory}):
        norm = syncbn.SyncBatchNorm(8, **options)
        with torch.autocast("cpu", torch.bfloat16):
            y = last(F.leaky_relu(norm(first(x))))
        assert y.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(y.float().square().sum(), [first.weight, last.weight, norm.weight]))
    for got, target in zip(*grads, strict=True):
        assert (got - target).abs().max() <= 0.05 * target.abs().max()


def derivatives_on_rank(sizes: list[int], memory: str, order: int) -> list[Tensor]:
    case = Case(sizes, memory)
    x, shortcut = (case.share(dist.get_rank())[name].clone().requires_grad_() for name in ("x", "shortcut"))
    layer = syncbn.SyncBatchNorm(5, fuse_activation=True, memory=memory).double()
    layer.weight.data.copy_(case.tensors["weight"])
    layer.bias.data.copy_(case.tensors["bias"])
    y = F.relu(layer(x) + shortcut) if memory == "keep" else F.relu(layer(x))
    y = F.conv2d(y, case.tensors["conv"].requires_grad_())
    return chain(order, y, x, layer.weight, layer.bias)


@pytest.mark.distributed
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_higher_derivatives_equal_one_process(ranks: Callable[[int], Ranks], memory: str, order: int) -> None:
    sizes = [1, 0, 3]
    case = Case(sizes, memory)
    x, weight, bias = (case.tensors[name].clone().requires_grad_() for name in ("x", "weight", "bias"))
    z = oracle.normalize(x, weight, bias) + (case.tensors["shortcut"] if memory == "keep" else 0)
    targets = chain(order, F.conv2d(F.relu(z), case.tensors["conv"]), x, weight, bias)
    results = ranks(len(sizes)).run(derivatives_on_rank, sizes, memory, order)
    for i, target in enumerate(targets):
        shares = [result[i] for result in results]
        got = torch.cat(shares) if target.dim() > 1 else sum(shares)
        torch.testing.assert_close(got, target, rtol=1e-8, atol=1e-8 * target.abs().max().item())


def test_invert_refuses_second_derivatives() -> None:
    layer = syncbn.SyncBatchNorm(3, fuse_activation=True, memory="invert")
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = F.leaky_relu(layer(x))
    with pytest.raises(NotImplementedError, match=r'memory="invert" has no second derivative.*"recompute"'):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("memory", ["keep", "invert"])
def test_forward_mode_is_refused(memory: str) -> None:
    layer, x = syncbn.SyncBatchNorm(3, fuse_activation=True, memory=memory), torch.randn(4, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        F.leaky_relu(layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))))


def test_invert_refuses_relu() -> None:
    layer = syncbn.SyncBatchNorm(3, fuse_activation=True, memory="invert")
    with pytest.raises(ValueError, match=r'ReLU doesn.t allow: use LeakyReLU, or memory="recompute"'):
        F.relu(layer(torch.randn(4, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_invert_takes_a_tiny_scale_for_a_larger_one(training: bool) -> None:
    layer = syncbn.SyncBatchNorm(4, fuse_activation=True, memory="invert").double().train(training)
    layer.weight.data = torch.tensor([0.0, -1e-5, 1e-9, 2.0], dtype=torch.float64)
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    y = F.leaky_relu(layer(x), 0.2)
    got = torch.autograd.grad(y, (x, layer.weight), dy)
    used = torch.tensor([1e-3, -1e-3, 1e-3, 2.0], dtype=torch.float64, requires_grad=True)
    if training:
        target = oracle.normalize(x, used, torch.zeros(4).double())
    else:
        target = x / (1 + 1e-5) ** 0.5 * used.view(1, 4, 1)
    target = F.leaky_relu(target, 0.2)
    torch.testing.assert_close(y, target, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, torch.autograd.grad(target, (x, used), dy), rtol=1e-7, atol=1e-9)


def test_a_mode_without_fusion_and_a_mode_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"memory='invert' is about a norm fused.*fuse_activation=True"):
        syncbn.SyncBatchNorm(3, memory="invert")
    with pytest.raises(ValueError, match=r"unknown memory='save'; allowed: 'keep', 'recompute', 'invert'"):
        syncbn.SyncBatchNorm(3, fuse_activation=True, memory="save")


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ReLU": lambda z, s: nn.ReLU()(z),
    "ReLU in place": lambda z, s: nn.ReLU(inplace=True)(z),
    "relu_": lambda z, s: (z.relu_(), z * 2)[1],
    "LeakyReLU": lambda z, s: nn.LeakyReLU(0.3, inplace=True)(z),
    "leaky_relu_": lambda z, s: F.leaky_relu_(z, 0.3),
    "a negative slope": lambda z, s: F.leaky_relu(z, -0.3),
    "shortcut first": lambda z, s: torch.relu(s + z),
    "shortcut added in place": lambda z, s: torch.relu(z.add_(s)),
    "shortcut by +=": lambda z, s: torch.relu(_plus_equal(z, s)),
    "added to the shortcut in place": lambda z, s: torch.relu((s * 1).add_(z)),
    "two shortcuts": lambda z, s: torch.relu(z + s + s),
    "a weighed sum": lambda z, s: torch.relu(torch.add(z, s, alpha=2)),
    "a broadcast sum": lambda z, s: torch.relu(z + s[:1]),
    "a number added": lambda z, s: torch.relu(z + 1),
    "itself added": lambda z, s: torch.relu(z + z),
    "used twice": lambda z, s: torch.relu(z) + z.sigmoid(),
    "summed and used": lambda z, s: torch.relu(z + s) + z,
    "the sum used twice": lambda z, s: (lambda t: torch.relu(t) * t)(z + s),
    "activated twice": lambda z, s: torch.relu(z) + F.leaky_relu(z, 0.3),
    "another function": lambda z, s: F.gelu(z),
    "indexed": lambda z, s: z[1:].flatten(),
    "in a list": lambda z, s: torch.cat([s, z]),
    "looked at": lambda z, s: z.relu() if z.shape == s.shape and z.dim() == 3 and z.requires_grad else s,
    "of another dtype": lambda z, s: torch.relu(z + s.float()),
}


def _plus_equal(z: Tensor, s: Tensor) -> Tensor:
    z += s
    return z


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_becomes_of_the_output(name: str, memory: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, s = (torch.randn(5, 3, 2, generator=generator).double().requires_grad_() for _ in range(2))
    results = []
    for options in ({}, {"fuse_activation": True, "memory": memory}):
        layer = syncbn.SyncBatchNorm(3, **options).double()
        y = FUNCTIONS[name](layer(x), s)
        grads = torch.autograd.grad(y.square().sum(), (x, s, layer.weight), allow_unused=True)
        results.append((y.detach(), grads))
    torch.testing.assert_close(*results)


def test_looking_at_the_shape_computes_nothing() -> None:
    layer = syncbn.SyncBatchNorm(3, fuse_activation=True)
    x = torch.randn(4, 3, 2, dtype=torch.bfloat16)
    z = layer(x)
    assert isinstance(z, Deferred)
    assert (z.shape, z.dtype, z.device, z.dim(), z.size(1), len(z.size())) == (x.shape, x.dtype, x.device, 3, 3, 3)
    assert z._value is None


def test_an_input_or_shortcut_changed_too_early_is_told() -> None:
    layer = syncbn.SyncBatchNorm(3, fuse_activation=True)
    x, s = torch.randn(4, 3), torch.randn(4, 3)
    for z, changed in ((layer(x), x), (layer(x) + s, s)):
        changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified in place before the activation"):
            torch.relu(z)


def test_an_output_that_is_written_on_is_not_computed_again() -> None:
    torch.manual_seed(0)
    layer, conv = syncbn.SyncBatchNorm(3, fuse_activation=True, memory="recompute"), nn.Conv1d(3, 2, 1)
    x = torch.randn(4, 3, 5)
    y = torch.relu(layer(x))
    y.mul_(2)
    (got,) = torch.autograd.grad(conv(y).square().sum(), conv.weight)
    plain = 2 * F.batch_norm(x, None, None, training=True).relu()
    (target,) = torch.autograd.grad(conv(plain).square().sum(), conv.weight)
    torch.testing.assert_close(got, target)


def test_not_where_there_is_nothing_to_gain() -> None:
    layer, x = syncbn.SyncBatchNorm(3, fuse_activation=True), torch.randn(4, 3)
    with torch.no_grad():
        assert type(layer(x)) is Tensor
    assert type(layer.eval()(x)) is Tensor
    layer.train().register_forward_pre_hook(lambda module, args: None)
    assert type(layer(x)) is Deferred
    layer.register_forward_hook(lambda module, args, output: None)
    assert type(layer(x)) is Tensor


def test_a_graph_can_be_used_again() -> None:
    torch.manual_seed(0)
    layer, conv = syncbn.SyncBatchNorm(3, fuse_activation=True, memory="recompute"), nn.Conv1d(3, 2, 1)
    x = torch.randn(4, 3, 5, requires_grad=True)
    loss = conv(torch.relu(layer(x))).square().sum()
    torch.autograd.grad(loss, conv.weight, retain_graph=True)  # not through the norm
    first = torch.autograd.grad(loss, (x, conv.weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (x, conv.weight)), first)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, x)


class Reversed(torch.autograd.Function):
    """The identity with a different gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: object, dy: Tensor) -> Tensor:
        return -dy


class Doubled(Reversed):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_an_activation_outside_of_a_checkpoint(memory: str, reentrant: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, requires_grad=True)
    results = []
    for options in ({}, {"fuse_activation": True, "memory": memory}):
        layer = syncbn.SyncBatchNorm(3, **options)
        y = torch.relu(checkpoint(layer, x, use_reentrant=reentrant))
        y.square().sum().backward()
        results.append((y.detach(), x.grad, layer.weight.grad, layer.running_var))
        x.grad = None
    torch.testing.assert_close(*results)


UNSEEN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a function that returns it": lambda layer, x: Reversed.apply(layer(x)),
    "a function of it": lambda layer, x: Doubled.apply(layer(x)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_python_does_not_see_is_told(name: str) -> None:
    layer = syncbn.SyncBatchNorm(3, fuse_activation=True)
    with pytest.raises(RuntimeError, match=r"went where Python can't follow it.*leave this layer out"):
        UNSEEN[name](layer, torch.randn(4, 3, requires_grad=True)).sum().backward()


def test_hooks_around_see_what_a_convolution_saves() -> None:
    """All but the activation's output, which isn't saved; the input of the norm is saved once."""
    layer, conv = syncbn.SyncBatchNorm(3, fuse_activation=True, memory="recompute"), nn.Conv1d(3, 2, 1)
    x = torch.randn(4, 3, 5)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = torch.relu(layer(x))
        conv(y).sum().backward()
    large = [t for t in saved if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]
    assert any(t.data_ptr() == conv.weight.data_ptr() for t in saved)


def test_the_smallest_scale_is_named_in_the_docs() -> None:
    assert "1e-3" in str(syncbn.SyncBatchNorm.__doc__)
    assert fused.SMALLEST_SCALE == 1e-3
