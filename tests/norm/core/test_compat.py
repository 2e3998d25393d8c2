"""The uses of torch's private API by `compat`: each test fails when torch changes it."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import syncbn
from syncbn.norm.core import compat, private
from syncbn.norm.core.lookup import Private, PrivateAttribute
from syncbn.norm.fusion.overlap import Link
from tests.norm.core import future_torch


def test_the_base_class_of_batch_norms() -> None:
    assert issubclass(nn.BatchNorm2d, compat.BatchNormBase)
    assert issubclass(nn.SyncBatchNorm, compat.BatchNormBase)
    assert not issubclass(nn.InstanceNorm2d, compat.BatchNormBase)


def test_a_recomputation_is_recognized() -> None:
    seen: list[bool] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(compat.in_backward())
        return x.sin().sin()

    x = torch.randn(3, requires_grad=True)
    checkpoint(function, x, use_reentrant=False).sum().backward()
    function(x)
    assert seen == [False, True, False]


@pytest.mark.parametrize(
    ("transform", "names"),
    [
        (torch.func.grad, ("grad",)),
        (torch.func.vmap, ("vmap",)),
        (lambda f: torch.func.vmap(torch.func.grad(f)), ("vmap", "grad")),
        (lambda f: lambda x: torch.func.jvp(f, (x,), (x,)), ("jvp",)),
    ],
)
def test_the_names_of_transforms(transform: object, names: tuple[str, ...]) -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(compat.functorch_transforms())
        return x.sum()

    transform(function)(torch.randn(3, 2))
    assert seen == [names]
    assert compat.functorch_transforms() == ()


def test_dispatch_modes_are_seen() -> None:
    assert not compat.in_dispatch_mode()
    for mode in (FakeTensorMode(), FlopCounterMode(display=False)):
        with mode:
            assert compat.in_dispatch_mode()
    seen = []
    make_fx(lambda x: seen.append(compat.in_dispatch_mode()) or x.sin())(torch.randn(3))
    assert seen == [True]
    with torch.profiler.profile(acc_events=True):
        assert not compat.in_dispatch_mode()


def test_wrappers_are_recognized() -> None:
    assert compat.is_compiled(torch.compile(nn.Linear(1, 1)))
    assert not compat.is_compiled(nn.Linear(1, 1))
    from torch.distributed import fsdp

    modules = [nn.parallel.DistributedDataParallel, nn.DataParallel, fsdp.FullyShardedDataParallel, fsdp.FSDPModule]
    assert {cls.__name__ for cls in (*modules, torch.jit.ScriptModule)} == set(compat.WRAPPERS)


def test_the_hooks_of_a_module_are_all_known() -> None:
    """Whatever registers a hook changes no other attribute of the module."""
    registers = [name for name in dir(nn.Module) if name.startswith("register_") and name.endswith("hook")]
    assert len(registers) > 7
    for name in registers:
        layer = nn.Linear(1, 1)
        before = {key: copy.copy(value) for key, value in vars(layer).items()}
        options = {"with_kwargs": True, "always_call": True} if name == "register_forward_hook" else {}
        getattr(layer, name)(lambda *_: None, **options)
        changed = {key for key, value in vars(layer).items() if value is not before[key] and value != before[key]}
        assert changed
        assert changed <= set(compat.HOOKS), name


def test_the_norms_of_torch_are_all_known() -> None:
    names = [name for name in dir(nn) if name.endswith("Norm") or ("Norm" in name and name[-2:] in ("1d", "2d", "3d"))]
    assert len(names) > 12
    for name in set(names) - {"CrossMapLRN2d", "LocalResponseNorm"}:
        assert issubclass(getattr(nn, name), compat.NORMS), name


def test_the_hooks_before_forward() -> None:
    layer = nn.Linear(1, 1)
    hooks = [print, repr]
    for hook in hooks:
        layer.register_forward_pre_hook(hook)
    assert list(compat.forward_pre_hooks(layer)) == hooks


def test_the_weight_gradient_of_a_convolution() -> None:
    conv = nn.ConvTranspose2d(2, 3, 2, stride=2)
    x = torch.randn(2, 2, 3, 3)
    y = conv(x)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, conv.weight, grad)
    shape = tuple(conv.weight.shape)
    actual = compat.convolution_weight_grad(grad, x, shape, (2, 2), (0, 0), (1, 1), True, (0, 0), 1)
    torch.testing.assert_close(actual, expected)


def test_the_padding_of_a_convolution() -> None:
    for padding in ((1, 2), "same", "valid"):
        for size in ((3, 5), (4, 2)):
            conv = nn.Conv2d(1, 1, size, padding=padding, dilation=(1, 3))
            assert list(compat.padding_ahead(conv)) == list(conv._reversed_padding_repeated_twice)
    assert compat.padding_ahead(nn.Conv2d(1, 1, (3, 5), padding=(1, 2))) == [2, 2, 1, 1]


def test_the_power_iteration_of_spectral_norm_is_torchs() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        ours = compat.SpectralParametrization(torch.randn(4, 3, 2))
        torch.manual_seed(seed)
        theirs = nn.utils.parametrizations._SpectralNorm(torch.randn(4, 3, 2))
        weight = torch.randn(4, 3, 2)
        torch.testing.assert_close(ours(weight), theirs(weight), rtol=0, atol=0)
        assert ours.state_dict().keys() == {"_u", "_v"}


def test_hooks_of_a_module_are_seen() -> None:
    for register in (
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ):
        module = nn.ReLU()
        assert not compat.has_hooks(module)
        handle = register(module, lambda *_: None)
        assert compat.has_hooks(module)
        assert compat.has_output_hooks(module) == (register is not nn.Module.register_forward_pre_hook)
        handle.remove()
        assert not compat.has_hooks(module)


def test_a_shell_has_no_memory() -> None:
    class Shell(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: object, types: object, args: object = (), kwargs: object = None) -> None:
            raise NotImplementedError

    like = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with compat.plain_tensors():
        shell = compat.empty_shell(Shell, like)
        assert type(shell) is Shell
        assert (shell.shape, shell.dtype, shell.stride()) == (like.shape, like.dtype, like.stride())
        assert shell.is_leaf
        assert shell.requires_grad
        assert shell.data_ptr() == 0


def test_plain_tensors_ignores_the_functions_of_subclasses() -> None:
    class Silent(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: object, types: object, args: object = (), kwargs: object = None) -> None:
            return None

    x = torch.ones(2).as_subclass(Silent)
    assert torch.neg(x) is None
    with compat.plain_tensors():
        assert type(torch.neg(x)) is torch.Tensor


def test_the_innermost_hooks_of_saved_tensors() -> None:
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    assert compat.saved_tensor_hooks() is None
    with saved_tensors_hooks(unpack, pack), saved_tensors_hooks(pack, unpack):
        assert compat.saved_tensor_hooks() == (pack, unpack)
    assert compat.saved_tensor_hooks() is None


PRIVATE = [value for value in vars(private).values() if isinstance(value, Private)]
ATTRIBUTES = [name for name in PRIVATE if isinstance(name, PrivateAttribute)]
UNPROBED = (private.resolve_process_group, private.default_store, private.proxy_mode)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Forget all probes, before and after."""
    for name in PRIVATE:
        name.forget()
    yield
    for name in PRIVATE:
        name.forget()


@pytest.mark.parametrize("name", PRIVATE, ids=lambda name: name.name)
def test_a_private_name_means_what_is_taken_from_it(name: Private) -> None:
    assert name.is_usable()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        FakeTensorMode,
        lambda: torch.device("meta"),
        lambda: torch.autograd.graph.disable_saved_tensors_hooks("not here"),
        lambda: saved_tensors_hooks(lambda tensor: 1 / 0, lambda tensor: tensor),
    ],
    ids=["inference mode", "fake tensors", "meta device", "disabled hooks", "hooks that fail"],
)
def test_a_name_is_as_usable_where_it_is_first_asked_for_in_a_mode(
    around: Callable[[], AbstractContextManager[object]],
) -> None:
    with around():
        assert [name.name for name in PRIVATE if not name.is_usable()] == []


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("transform", [torch.vmap, torch.func.functionalize, torch.func.hessian, make_fx])
def test_and_in_a_transform(transform: Callable[..., Callable[..., object]]) -> None:
    unusable: list[str] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        unusable.extend(name.name for name in PRIVATE if not name.is_usable())
        return x * 1

    transform(function)(torch.zeros(2))
    assert not unusable


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("name", [name for name in PRIVATE if name not in ATTRIBUTES], ids=lambda name: name.name)
def test_a_missing_name_and_one_that_means_something_else_are_refused(
    name: Private, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _, leaf = name.name.rpartition(".")
    monkeypatch.setattr(f"{owner}.{leaf}", lambda *args, **kwargs: None)
    if name not in UNPROBED:
        with pytest.raises(
            RuntimeError, match=re.escape(f"needs {name.name}, which torch {torch.__version__} uses otherwise")
        ):
            name()
    if name is private.make_wrapper_subclass:  # a base class in C++ has it, which can't be taken from there
        return
    monkeypatch.delattr(f"{owner}.{leaf}")
    with pytest.raises(RuntimeError, match=f"needs {name.name}, which torch .* doesn't have: .*docs/versions.md"):
        name()
    assert not name.is_usable()


@pytest.mark.parametrize("name", ATTRIBUTES, ids=lambda name: name.name)
def test_a_missing_attribute_and_one_that_means_something_else_are_refused(name: PrivateAttribute) -> None:
    future = future_torch.without(name)
    with pytest.raises(RuntimeError, match=f"needs {name.name}_gone, which torch .* doesn't have: .*docs/versions.md"):
        future(nn.Identity())
    if name is not private.compiled_from:
        assert not future.is_usable()
        future = PrivateAttribute("torch.nn.Module.extra_repr", name.feature, name.instead, name.probe)
        assert not future.is_usable()


@pytest.mark.parametrize("name", future_torch.names())
def test_the_package_is_imported_without_any_private_name(name: str) -> None:
    future_torch.execute(name)


@pytest.mark.parametrize("name", ["_u", "_version", "TorchDispatchMode"])
def test_what_needs_a_missing_name_is_refused_and_the_rest_is_right(name: str) -> None:
    """`python -m tests.norm.core.future_torch` tries all names."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.norm.core.future_torch", name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_overlap_is_refused_where_hooks_on_nodes_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook on such a node would see NaN."""
    monkeypatch.setattr(private, "backward_class", future_torch.without(private.backward_class))
    with pytest.raises(RuntimeError, match=r"overlap=True needs .*_backward_cls_gone, which torch .* doesn't have"):
        Link(lambda: None)


@pytest.mark.usefixtures("forgotten")
def test_what_doesnt_need_a_missing_name_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 5, requires_grad=True)
    monkeypatch.delattr("torch._C._len_torch_dispatch_stack")
    monkeypatch.delattr("torch._C._autograd._top_saved_tensors_default_hooks")
    expected = nn.BatchNorm1d(3)(x)
    torch.testing.assert_close(syncbn.SyncBatchNorm(3)(x), expected)
    torch.testing.assert_close(torch.relu(syncbn.SyncBatchNorm(3, fuse_activation=True)(x)), torch.relu(expected))
    monkeypatch.delattr("torch._C._current_graph_task_id")
    private.graph_task_id.forget()  # which the forward pass before has found
    torch.testing.assert_close(syncbn.SyncBatchNorm(3, track_running_stats=False)(x), expected)
    torch.testing.assert_close(syncbn.SyncBatchNorm(3).eval()(x), nn.BatchNorm1d(3).eval()(x))
    with pytest.raises(RuntimeError, match=r"a batch norm that is trained, .* needs torch._C._current_graph_task_id"):
        syncbn.SyncBatchNorm(3)(x)


def test_the_profiler_is_seen() -> None:
    assert not compat.is_profiling()
    with torch.profiler.profile(acc_events=True):
        assert compat.is_profiling()
    assert not compat.is_profiling()


def test_the_time_out_of_a_group(tmp_path: Path) -> None:
    timeout = timedelta(seconds=77)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timeout)
    try:
        assert compat.group_timeout(dist.group.WORLD) == timeout
    finally:
        dist.destroy_process_group()


def test_a_backward_pass_has_a_number_and_knows_where_it_goes() -> None:
    x, w = (torch.ones((), requires_grad=True) for _ in range(2))
    left, right = x * 1, w * 1
    seen: list[tuple[int, bool, bool]] = []
    y = left * right
    y.register_hook(
        lambda _: seen.append((compat.backward_pass(), *(compat.will_run(z.grad_fn) for z in (left, right))))
    )
    torch.autograd.grad(y, x, retain_graph=True)
    y.backward()
    assert compat.backward_pass() == -1
    assert [(first, second) for _, first, second in seen] == [(True, False), (True, True)]
    assert len({number for number, _, _ in seen} - {-1}) == 2


def test_hooks_on_nodes_are_told() -> None:
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: object, dy: torch.Tensor) -> torch.Tensor:
            return dy

    told: list[object] = []
    compat.tell_hooks(Identity, told.append)
    x = torch.ones(2, requires_grad=True)
    y = Identity.apply(x)
    node = y.grad_fn
    seen: list[object] = []
    node.register_hook(lambda *_: seen.append(1))
    node.register_prehook(lambda *_: seen.append(0))
    assert told == [node, node]
    y.sum().backward()
    assert seen == [0, 1]
