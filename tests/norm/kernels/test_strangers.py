"""Inputs and gradients of every kind of tensor, under every mode: the right numbers, or an error that Python can catch.

A wrong number and a crash are the two answers that aren't allowed. `pytest --hypothesis-profile=...` tries more.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import syncbn


class Named(Tensor):
    """A subclass that torch treats as any other tensor."""


class Wrapped(Tensor):
    """A subclass without memory of its own, which unwraps and wraps what every operation takes and gives."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        shell = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, requires_grad=inner.requires_grad
        )
        shell.inner = inner
        return shell

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrapped(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapped) else value

        def wrapped(value: Any) -> Any:
            return Wrapped(value) if isinstance(value, Tensor) else value

        args, kwargs = torch.utils._pytree.tree_map(unwrapped, (args, kwargs or {}))
        return torch.utils._pytree.tree_map(wrapped, func(*args, **kwargs))


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# How a tensor may hold the numbers of another.
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "plain": torch.clone,
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda x: torch.stack([x, x + 9], dim=-1)[..., 0],
    "negative": lambda x: torch._neg_view(-x),
    "imaginary": lambda x: torch.complex(x + 9, -x).conj().imag,
    "expanded": lambda x: x[..., :1].expand(x.shape),
    "parameter": lambda x: nn.Parameter(x.clone()),
    "subclass": lambda x: x.clone().as_subclass(Named),
    "wrapper": Wrapped,
    "zeros": lambda x: torch._efficientzerotensor(x.shape),
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "meta": lambda x: x.to("meta"),
    "complex": lambda x: torch.complex(x, x),
    "integer": lambda x: x.long(),
    "nested": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "empty": lambda x: x[:0],
}


class Seeing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class SeeingAll(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def elsewhere() -> Any:
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone())


MODES: dict[str, Callable[[], Any]] = {
    "none": contextlib.nullcontext,
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "flops": lambda: FlopCounterMode(display=False),
    "functions": Seeing,
    "operations": SeeingAll,
    "both": lambda: stacked(Seeing, SeeingAll),
    "saved elsewhere": elsewhere,
    "on a device": lambda: torch.device("cpu"),
    "by default elsewhere": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "profiled": torch.profiler.profile,
    "one thread": lambda: torch.backends.mkldnn.flags(enabled=False),
}


@contextlib.contextmanager
def stacked(*modes: Callable[[], Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode())
        yield


def dense(value: Any) -> Tensor:
    """The numbers of a result, in float64."""
    value = value.inner if isinstance(value, Wrapped) else value
    value = value.to_dense() if value.layout != torch.strided else value
    return value.detach().as_subclass(Tensor).double()


def step(layer: nn.Module, x: Any, dy: Any, activation: bool) -> list[Any]:
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    y = F.leaky_relu(y) if activation else y
    return [y, *torch.autograd.grad(y, (leaf, *layer.parameters()), dy)]


def reference(x: Tensor, dy: Tensor, layer: nn.Module, activation: bool) -> list[Tensor]:
    wide = nn.BatchNorm1d(x.shape[1]).double().train(layer.training)
    wide.load_state_dict(layer.state_dict())
    leaf = x.double().requires_grad_()
    y = wide(leaf.flatten(2) if x.dim() > 2 else leaf).view(x.shape)
    y = F.leaky_relu(y) if activation else y
    return [y, *torch.autograd.grad(y, (leaf, *wide.parameters()), dy.double())]


# Errors by which torch and this package refuse: whatever else is raised is a mistake of ours.
REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)


@settings(max_examples=250)
@given(
    shape=st.sampled_from([(6, 3), (4, 3, 5), (2, 3, 4, 5), (5, 1, 3, 3)]),
    of_x=st.sampled_from(sorted(KINDS)),
    of_dy=st.sampled_from(sorted(KINDS)),
    mode=st.sampled_from(sorted(MODES)),
    fused=st.booleans(),
    training=st.booleans(),
)
@pytest.mark.filterwarnings("ignore")
def test_right_or_refused(
    shape: tuple[int, ...], of_x: str, of_dy: str, mode: str, fused: bool, training: bool
) -> None:
    layer = syncbn.SyncBatchNorm(shape[1], fuse_activation=fused).train(training)
    with torch.no_grad():
        layer.weight.copy_(numbers(layer.weight.shape, 2) + 1)
        layer.bias.copy_(numbers(layer.weight.shape, 4))
        layer.running_mean.copy_(numbers(layer.weight.shape, 3))
    try:
        x, dy = KINDS[of_x](numbers(shape, 0)), KINDS[of_dy](numbers(shape, 1))
        twin = copy.deepcopy(layer)
        with MODES[mode]():
            got = step(layer, x, dy.to(x.dtype) if dy.layout == torch.strided else dy, fused)
    except REFUSALS:
        return
    if "meta" in (of_x, of_dy):
        assert all(result.is_meta or result.numel() for result in got[:1])
        return
    expected = reference(dense(x), dense(dy), twin, fused)
    half = {"half", "bfloat16"} & {of_x, of_dy} or mode == "autocast"
    for actual, target in zip(got, expected, strict=True):
        tolerance = 5e-2 if half else 1e-4
        torch.testing.assert_close(
            dense(actual), target.detach(), rtol=tolerance, atol=tolerance * 10 if half else 1e-3
        )


WORKS = ["plain", "double", "half", "bfloat16", "channels last", "transposed", "strided", "negative", "imaginary"]
WORKS += ["expanded", "parameter", "subclass", "wrapper", "zeros", "mkldnn", "empty"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in WORKS if kind != "mkldnn"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_what_works_with_torch_s_layer_isn_t_refused(kind: str, mode: str) -> None:
    x, dy = KINDS[kind](numbers((4, 3, 5), 0)), KINDS["plain"](numbers((4, 3, 5), 1))
    dy = dy[: x.shape[0]]

    def outcome(layer: nn.Module) -> str:
        try:
            with MODES[mode]():
                step(layer, x, dy.to(x.dtype), activation=False)
        except REFUSALS as error:
            return f"{type(error).__name__}: {error}"
        return "works"

    if outcome(nn.BatchNorm1d(3)) == "works":
        assert outcome(syncbn.SyncBatchNorm(3)) == "works"


X = numbers((6, 3, 4), 0).double()


def gradient(layer: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    return function(layer, X)


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(layer(leaf).pow(3).sum(), leaf)[0]


def by_checkpoint(layer: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    y = checkpoint(layer, leaf, use_reentrant=False)
    return torch.autograd.grad(y.pow(3).sum(), leaf)[0]


def by_func_grad(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.func.grad(lambda x: layer(x).pow(3).sum())(x)


def by_vjp(layer: nn.Module, x: Tensor) -> Tensor:
    y, back = torch.func.vjp(layer, x)
    return back(3 * y.square())[0]


def by_jacrev(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jacrev(lambda x: layer(x).pow(3).sum())(x)


def by_make_fx(layer: nn.Module, x: Tensor) -> Tensor:
    def function(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(layer(leaf).pow(3).sum(), leaf)[0]

    return make_fx(function)(x)(x)


def by_functional_call(layer: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    y: Any = torch.func.functional_call(layer, dict(layer.named_parameters()), (leaf,))
    return torch.autograd.grad(y.pow(3).sum(), leaf)[0]


def by_vectorized_jacobian(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: layer(x).pow(3).sum(), x, vectorize=True)


def of_two_threads(layer: nn.Module, x: Tensor) -> Tensor:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: plain(layer, x), range(2))
    torch.testing.assert_close(first, second)
    return first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracks", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "way",
    [
        by_checkpoint,
        by_func_grad,
        by_vjp,
        by_jacrev,
        by_make_fx,
        by_functional_call,
        by_vectorized_jacobian,
        of_two_threads,
    ],
)
def test_a_gradient_is_the_same_by_any_way(way: Callable[..., Tensor], training: bool, tracks: bool) -> None:
    layer = syncbn.SyncBatchNorm(3, track_running_stats=tracks).double().train(training)
    peer = nn.BatchNorm1d(3, track_running_stats=tracks).double().train(training)
    expected = plain(peer, X)
    if training and tracks and way in (by_func_grad, by_vjp, by_jacrev):
        with pytest.raises(NotImplementedError, match="running statistics can't be updated"):
            way(layer, X)
        return
    torch.testing.assert_close(way(layer, X), expected)


@pytest.mark.parametrize("randomness", ["error", "different"])
def test_evaluation_maps_over_samples(randomness: str) -> None:
    layer = syncbn.SyncBatchNorm(3).double().eval()
    layer.running_mean.fill_(0.5)
    many = torch.stack([X, X + 1])
    got = torch.func.vmap(layer, randomness=randomness)(many)
    torch.testing.assert_close(got, torch.stack([layer(X), layer(X + 1)]))
    _, tangent = torch.func.jvp(layer, (X,), (torch.ones_like(X),))
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    torch.testing.assert_close(tangent, scale.view(-1, 1).expand_as(X))
