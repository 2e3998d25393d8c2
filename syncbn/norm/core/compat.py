"""All uses of torch's private API, through `private`, which checks that this torch has it.

`tests/norm/core/test_compat.py` fails when torch changes one, and takes each away.
"""

import inspect
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from syncbn.norm.core import lookup, private


def _base_of(norm: type[nn.Module]) -> type[nn.Module]:
    """The class that torch's norms of 1, 2 and 3 dimensions share."""
    base = norm.__base__
    if base is nn.Module or base is None:
        raise ImportError(f"torch {torch.__version__} has no base of {norm.__name__}: use a torch of docs/versions.md")
    return base


# Base class that DDP, FSDP and Lightning recognize as a batch norm. Not `nn.SyncBatchNorm`: DDP refuses it on CPU.
if TYPE_CHECKING:
    BatchNormBase = nn.modules.batchnorm._BatchNorm
else:
    BatchNormBase = _base_of(nn.BatchNorm2d)

# Torch's batch norms, of which others are subclasses.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Torch's instance norms, by the number of their input's dimensions: 3, 4 and 5.
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# Whether a compiled backward pass writes to buffers. Before torch 2.13 it may write zeros, which no name tells.
COMPILED_BACKWARD_WRITES = torch.__version__ >= "2.13"  # which compares versions, not strings

# Whether Inductor runs what has a side effect and no user. Before torch 2.11 it drops it, which no name tells.
COMPILED_SUMS_STAY = torch.__version__ >= "2.11"

# All normalization layers of torch.
NORMS = (BatchNormBase, _base_of(nn.InstanceNorm2d), nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

# Maps the values of a type in nested tuples, lists and dicts.
tree_map_only = private.tree_map_only

TorchDispatchMode = lookup.TorchDispatchMode

# A module's hook dictionaries, also of kinds that only a newer torch has. A handle removes its hook from one of them.
CALLED_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)

# Wrappers that inspect the model's layers when created, and the order to use instead.
WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel(syncbn.convert(model, ...))",
    "DataParallel": "DistributedDataParallel(syncbn.convert(model, ...)), one process a device",
    "FullyShardedDataParallel": "FullyShardedDataParallel(syncbn.convert(model, ...))",
    "FSDPModule": "fully_shard(syncbn.convert(model, ...))",
    "ScriptModule": "torch.jit.script(syncbn.convert(model, ...))",
}


def ddp_without_buffers() -> dict[str, bool]:
    """Argument of `DistributedDataParallel` that turns off its broadcast of buffers before each forward pass.

    From torch 2.13 on, buffers are still broadcast once, when DDP is created. Earlier versions skip that, too: call
    `broadcast_buffers` first.
    """
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def broadcast_buffers(module: nn.Module, process_group: ProcessGroup | None = None) -> None:
    """Broadcast rank 0's buffers once, where `ddp_without_buffers` would skip it."""
    if "broadcast_buffers" in ddp_without_buffers():
        for buffer in module.buffers():
            dist.broadcast(
                buffer, 0 if process_group is None else dist.get_global_rank(process_group, 0), process_group
            )


def joins_uneven_inputs() -> bool:
    """Whether the DDP that runs is inside its `join()`, by which ranks that have no more data answer its messages."""
    active: Any = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    config = getattr(active, "_join_config", None)
    return config is not None and config.enable and not config.throw_on_early_termination


def in_backward() -> bool:
    """Whether this thread is inside a backward pass: a forward there is a recomputation (activation checkpointing).

    It must be evaluated when a layer runs, not when it is traced, so a compiled layer does it in a custom operator.
    """
    return private.graph_task_id() != -1


def backward_pass() -> int:
    """A number for the backward pass that runs in this thread, another one for each; -1 outside of one."""
    return int(private.graph_task_id())


def will_run(node: Any) -> bool:
    """Whether the backward pass that runs will come to a node of the graph; assumed where it can't be told.

    torch doesn't tell it of a leaf's node in `torch.autograd.grad`.
    """
    if not private.will_engine_execute_node.is_usable():
        return True
    try:
        return bool(private.will_engine_execute_node(node))
    except RuntimeError:
        return True


def tell_hooks(function: type[torch.autograd.Function], told: Callable[[Any], None]) -> None:
    """Call `told` with a node of the graph, one of `function`'s, before a hook is registered on it.

    Not where this torch doesn't have what that takes: see `check_that_hooks_are_told`.
    """
    node_class: Any = getattr(function, "_backward_cls", None)
    for name in ("register_hook", "register_prehook"):
        if hasattr(node_class, name):
            setattr(node_class, name, _telling(getattr(node_class, name), told))


def check_that_hooks_are_told() -> None:
    """Check that `tell_hooks` works in this torch.

    Raises:
        RuntimeError: it doesn't.
    """
    private.backward_class.check()


def _telling(register: Callable[..., Any], told: Callable[[Any], None]) -> Callable[..., Any]:
    def registering(node: Any, hook: Callable[..., Any]) -> Any:
        told(node)
        return register(node, hook)

    return registering


def functorch_transforms() -> tuple[str, ...]:
    """Active `torch.func` transforms, outermost first: "grad" (also vjp, jacrev), "vmap", "jvp", ..."""
    if torch.compiler.is_compiling():
        return ()  # the query can't be traced
    stack = private.interpreter_stack() or []
    return tuple(interpreter.key().name.lower() for interpreter in stack)


def is_tracing() -> bool:
    """Whether operations must be traceable: under `torch.compile`, `torch.export`, or if `is_transformed`."""
    return torch.compiler.is_compiling() or is_transformed()


def is_transformed() -> bool:
    """Whether a `torch.func` transform or `torch.jit.trace` sees every operation. Can't be compiled."""
    return private.peek_interpreter_stack() is not None or torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_exporting() -> bool:
    """Whether a graph is being made for use elsewhere, by `torch.export` or `torch.jit.trace`."""
    # The flag itself, where there is one: the compiler before torch 2.13 takes `is_exporting()` for true in any graph.
    exporting = getattr(torch.compiler, "_is_exporting_flag", None)
    if exporting is None:
        exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()
    return exporting or torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_proxy_tracing() -> bool:
    """Whether `make_fx` records operations on tensors whose values must not decide anything; if unknown, True."""
    return in_dispatch_mode() and not (private.proxy_mode.is_usable() and private.proxy_mode() is None)


def in_dispatch_mode() -> bool:
    """Whether a dispatch mode (a flop counter, `FakeTensorMode`, `make_fx`) must see every operation.

    If unknown, True: ATen's kernels are correct everywhere.
    """
    return not private.dispatch_stack_length.is_usable() or private.dispatch_stack_length() > 0


def dispatch_modes() -> int:
    """How many dispatch modes see every operation; 0 if unknown."""
    return int(private.dispatch_stack_length()) if private.dispatch_stack_length.is_usable() else 0


def no_dispatch_modes() -> AbstractContextManager[object]:
    """Context in which no dispatch mode sees operations."""
    return private.disable_current_modes() if in_dispatch_mode() else nullcontext()


def group_by_name(name: str) -> ProcessGroup:
    """Process group with a `group_name`: operators take names, since a graph can't hold a group."""
    group: ProcessGroup = private.resolve_process_group(name)
    if group.group_name != name:
        raise RuntimeError(f"torch {torch.__version__} answers the group {group.group_name!r} for {name!r}")
    return group


def group_timeout(group: ProcessGroup) -> timedelta:
    """Timeout of the group's collectives on CPU.

    Raises:
        RuntimeError: this torch doesn't expose it.
    """
    try:
        backend: Any = group._get_backend(torch.device("cpu"))
        backend = getattr(backend, "wrapped_pg", backend)  # with TORCH_DISTRIBUTED_DEBUG=DETAIL
        timeout = backend.options._timeout
    except AttributeError as error:
        raise RuntimeError(f"torch {torch.__version__} doesn't show a group's time-out: {error}") from error
    if not isinstance(timeout, timedelta):
        raise RuntimeError(f"torch {torch.__version__} shows {timeout!r} as a group's time-out")
    return timeout


def let_agent_handle(signums: Collection[signal.Signals]) -> None:
    """Let torchrun's agent in this process pass these signals on to its ranks, and no others.

    For torch before 2.9, whose agent takes SIGHUP even under `nohup`, and dies of SIGUSR1.
    """
    from torch.distributed.elastic.multiprocessing import api  # imported late: many modules, for one user

    ranks: Any = api.SubprocessContext
    start = ranks._start
    before = {signum: signal.getsignal(signum) for signum in (*signums, signal.SIGHUP, signal.SIGQUIT)}

    def start_ranks(context: Any) -> None:  # after the agent has set its handlers; the ranks inherit what is ignored
        for signum, handler in before.items():
            signal.signal(signum, api._terminate_process_handler if signum in signums else handler)
        start(context)

    ranks._start = start_ranks


def let_agent_wait(seconds: int) -> None:
    """Let torchrun's agent in this process wait so long for its ranks to end, where it has passed a signal on.

    For torch before 2.13, whose agent waits 30 seconds.
    """
    from torch.distributed.elastic.multiprocessing import api

    ranks: Any = api.SubprocessContext
    close = ranks.close

    def close_ranks(context: Any, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        passed_on = isinstance(sys.exc_info()[1], api.SignalException)  # otherwise a rank has failed
        close(context, death_sig, seconds if passed_on else timeout)

    ranks.close = close_ranks


def is_profiling() -> bool:
    """Whether torch's profiler is on; True if unknown."""
    return getattr(torch.autograd.profiler, "_is_profiler_enabled", True)


def batch_norm(
    input: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalize by given statistics, as in evaluation."""
    if eps == 0:  # which the function of torch 2.11 refuses, and its operation takes
        return torch.batch_norm(input, weight, bias, mean, var, False, 0.0, 0.0, torch.backends.cudnn.enabled)
    return F.batch_norm(input, mean, var, weight, bias, eps=eps)


_TorchSpectralNorm: Any = lookup.base_class(
    "torch.nn.utils.parametrizations._SpectralNorm", "norm=spectral", "take another norm", "_power_method"
)


class SpectralParametrization(_TorchSpectralNorm):
    """Parametrization of torch's `spectral_norm`, without a power iteration in recomputed forward passes.

    torch's own iterates when activation checkpointing recomputes a forward pass, which then has different weights.
    """

    @torch.no_grad()
    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        if not torch.compiler.is_compiling():
            if in_backward():
                return
            for vector in private.spectral_vectors:
                vector(self)  # which refuses a torch without it
        weight = weight_mat.detach()  # torch.export of torch 2.8 doesn't see no_grad
        for _ in range(n_power_iterations):
            # The same numbers as torch's, which assigns the buffers: before torch 2.13, an export that failed leaves a
            # hook on such assignments, and the compiler stops at it.
            self._u.copy_(F.normalize(torch.mv(weight, self._v), dim=0, eps=self.eps))
            self._v.copy_(F.normalize(torch.mv(weight.H, self._u), dim=0, eps=self.eps))


def is_compiled(module: nn.Module) -> bool:
    """Whether `module` is the wrapper that `torch.compile(module)` returns."""
    return any(
        cls.__name__ == "OptimizedModule" and cls.__module__.startswith("torch.") for cls in type(module).__mro__
    )


def compiled_from(module: nn.Module) -> Any:
    """Module inside of such a wrapper."""
    return private.compiled_from(module)


def forget_graphs() -> None:
    """Have compiled models traced again, after their modules' hooks have changed: Dynamo doesn't guard on hooks."""
    if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
        torch.compiler.reset()


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` was called: what it compiled stays that of this very module."""
    return getattr(module, "_compiled_call_impl", None) is not None


def convolution_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Gradient of a convolution with respect to its weight; `torch.nn.grad` has none for transposed ones."""
    weight = input.new_empty(1).expand(weight_shape)  # only its shape is looked at
    needed = (False, True, False)
    grads = convolution_grads(
        grad_output, input, weight, 0, stride, padding, dilation, transposed, output_padding, groups, needed
    )
    assert grads[1] is not None
    return grads[1]


def convolution_grads(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    channels_out: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of a convolution by its input, weight and bias, those that are needed. Differentiable."""
    grads: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight,
        [channels_out] if needed[2] else None,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        list(needed),
    )
    return grads


def padding_ahead(convolution: Any) -> Sequence[int]:
    """Padding of a convolution in the order of `torch.nn.functional.pad`, last dimension first."""
    if isinstance(convolution.padding, str):
        reach = [
            dilation * (size - 1) for dilation, size in zip(convolution.dilation, convolution.kernel_size, strict=True)
        ]
        sides = [(both // 2, both - both // 2) if convolution.padding == "same" else (0, 0) for both in reach]
    else:
        sides = [(one, one) for one in convolution.padding]
    return [side for both in reversed(sides) for side in both]


def forward_pre_hooks(module: nn.Module) -> tuple[Callable[..., Any], ...]:
    """Hooks that a module calls before its forward, in order."""
    return tuple(private.forward_pre_hooks(module).values())


def has_output_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks that see its output or the output's gradient."""
    return bool(private.forward_hooks(module) or private.backward_hooks(module) or private.backward_pre_hooks(module))


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks around its forward or backward pass."""
    return bool(hooks_of(module))


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """Hooks around a module's forward and backward passes."""
    around = private.forward_pre_hooks, private.forward_hooks, private.backward_pre_hooks, private.backward_hooks
    return [hook for hooks in around for hook in hooks(module).values()]


def share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Share the hook dictionaries of `source` with `target`, so that a handle removes its hook from both."""
    for name in HOOKS:
        target.__dict__[name] = source.__dict__[name]


def load_state_dict_pre_hooks(module: nn.Module) -> tuple[Any, ...]:
    """What a module calls before a state dict is loaded."""
    return tuple(private.load_state_dict_pre_hooks(module).values())


def is_observer(module: nn.Module) -> bool:
    """Whether a module watches, or rounds, what passes through it, for quantization."""
    return any(cls.__module__.startswith("torch.ao.quantization") for cls in type(module).__mro__)


def version_of(tensor: Tensor) -> int:
    """Number of in-place writes to a tensor's memory."""
    return int(private.version(tensor))


def store_of_default_group() -> Any:
    """Store by which the ranks of the default group have met."""
    return private.default_store()


def empty_shell(cls: type[Tensor], like: Tensor) -> Any:
    """Make a leaf tensor of a subclass with the shape, strides, dtype and device of another, without memory."""
    strides, dtype, device = like.stride(), like.dtype, like.device
    return private.make_wrapper_subclass(
        cls, like.shape, strides=strides, dtype=dtype, device=device, requires_grad=True
    )


def plain_tensors() -> Any:
    """Context in which tensor subclasses are treated as plain tensors."""
    return private.disable_torch_function()


def saved_tensor_hooks() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """Innermost active `torch.autograd.graph.saved_tensors_hooks`: (pack, unpack)."""
    return private.top_saved_tensor_hooks(False)


def storage_ref(tensor: Tensor) -> Any:
    """Weak reference to a tensor's storage: `.cdata` is its identity, `.expired()` whether it was freed.

    None for a tensor without a storage, such as a sparse one.
    """
    storage = _storage(tensor)
    return None if storage is None else private.storage_weak_ref(storage)


def storage_key(tensor: Tensor) -> int | None:
    """Identity of a tensor's storage, as in `storage_ref`."""
    storage = _storage(tensor)
    return None if storage is None else private.storage_identity(storage)


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def no_torch_functions() -> Any:
    """Context in which neither function modes nor subclasses see calls on tensors."""
    return private.disable_all_torch_functions()


def remove_global_hook(handle: Any) -> None:
    """Remove a global module hook, including the entry that torch leaves behind for one with keyword arguments."""
    handle.remove()
    getattr(nn.modules.module, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)


def written_arguments(op: Any) -> list[tuple[int, str]]:
    """Position and name of each argument that an operator of `torch.ops` writes to, by its schema."""
    return [
        (place, argument.name)
        for place, argument in enumerate(private.schema(op).arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def without_writing(op: Any) -> Any:
    """Out-of-place variant of an operator, `add.Tensor` for `add_.Tensor`; the operator itself if there is none."""
    name = op.overloadpacket.__name__
    functional = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
    return op if functional is None else getattr(functional, private.overload_name(op), op)


def runs_own_code(module: nn.Module) -> bool:
    """Whether a torch layer or its subclass has computing methods that aren't torch's."""
    names = ("forward", "_conv_forward", "__call__")
    if any(name in vars(module) for name in names):
        return True
    own = [
        cls
        for cls in type(module).__mro__
        if cls.__module__.partition(".")[0] not in ("torch", "builtins") and not vars(cls).get("computes_as_its_base")
    ]
    return any(name in vars(cls) for cls in own for name in names)
