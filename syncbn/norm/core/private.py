"""Private names of torch, found by feature instead of version, and probed before use."""

from collections.abc import Callable
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Private:
    """A private function of torch, found and probed on first call.

    Args:
        name: dotted name.
        feature: feature that needs it, the beginning of "... needs".
        instead: what a user can do without it.
        probe: tests whether the function behaves as this package expects.
    """

    def __init__(self, name: str, feature: str, instead: str, probe: Callable[[Callable[..., Any]], bool]) -> None:
        self.name = name
        self.feature = feature
        self.instead = instead
        self.probe = probe

    @cached_property
    def function(self) -> Callable[..., Any]:
        """Find the function.

        Raises:
            RuntimeError: this torch doesn't have it, or it behaves differently.
        """
        try:
            found: Any = reduce(getattr, self.name.split(".")[1:], torch)
        except AttributeError:
            raise RuntimeError(self._refusal("doesn't have")) from None
        try:
            is_as_expected = self.probe(found)
        except Exception as error:
            raise RuntimeError(self._refusal(f"uses otherwise ({type(error).__name__}: {error})")) from error
        if not is_as_expected:
            raise RuntimeError(self._refusal("uses otherwise"))
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def is_usable(self) -> bool:
        """Whether this torch has it, with the expected behaviour."""
        try:
            return bool(self.function)
        except RuntimeError:
            return False

    def _refusal(self, what: str) -> str:
        return (
            f"{self.feature} needs {self.name}, which torch {torch.__version__} {what}: {self.instead}, or use a torch "
            "of docs/versions.md"
        )


def _tells_a_backward_pass(graph_task_id: Callable[[], int]) -> bool:
    outside, inside = graph_task_id(), list[int]()
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros((), device="cpu", requires_grad=True)
        y = x * 1
        y.register_hook(lambda _: inside.append(graph_task_id()))
        torch.autograd.grad(y, x)
    return isinstance(outside, int) and outside >= -1 and inside[0] >= 0 and inside[0] != outside


def _knows_what_runs(will_run: Callable[[Any], bool]) -> bool:
    answers = list[bool]()
    with torch.inference_mode(False), torch.enable_grad():
        x, w = (torch.ones((), device="cpu", requires_grad=True) for _ in range(2))
        left, right = x * 1, w * 1
        y = left * right
        y.register_hook(lambda _: answers.extend(will_run(z.grad_fn) for z in (left, right)))
        torch.autograd.grad(y, x)
    return answers == [True, False]


def _lists_transforms(interpreter_stack: Callable[[], Any]) -> bool:
    seen: list[str] = []

    def function(x: Tensor) -> Tensor:
        seen.extend(interpreter.key().name for interpreter in interpreter_stack())
        return x

    torch.func.vmap(function)(torch.zeros(1, device="cpu"))
    return seen[-1:] == ["Vmap"]


def _sees_a_transform(peek: Callable[[], Any]) -> bool:
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        seen.append(peek() is not None)
        return x

    torch.func.vmap(function)(torch.zeros(1, device="cpu"))
    return seen == [True]


def _counts_modes(stack_length: Callable[[], int]) -> bool:
    before = stack_length()
    with TorchDispatchMode():
        return stack_length() == before + 1


def _shows_hooks(top_hooks: Callable[[bool], Any]) -> bool:
    def pack(x: Tensor) -> Tensor:
        return x

    def unpack(x: Tensor) -> Tensor:
        return x

    with saved_tensors_hooks(pack, unpack):
        return top_hooks(False) == (pack, unpack)


class _Probe(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return "function"


def _makes_a_shell(make_wrapper_subclass: Callable[..., Any]) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        shell = make_wrapper_subclass(_Probe, (2, 3), strides=(1, 2), dtype=torch.float64, requires_grad=True)
        return shell.shape == (2, 3) and shell.stride() == (1, 2) and shell.requires_grad and shell.data_ptr() == 0


def _disables_functions(context: Callable[[], Any]) -> bool:
    x = torch.ones(2, device="cpu").as_subclass(_Probe)
    with context():
        return x.dim() == 1


def _hides_from_modes(context: Callable[[], Any]) -> bool:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, device="cpu")
    with Mode(), context():
        x.stride()
    return not seen


graph_task_id = Private(
    "torch._C._current_graph_task_id",
    "a batch norm that is trained, which must know a repeated forward pass (activation checkpointing),",
    "use layers of torch.nn",
    _tells_a_backward_pass,
)
will_engine_execute_node = Private(
    "torch._C._will_engine_execute_node", "overlap=True", "leave overlap out", _knows_what_runs
)
interpreter_stack = Private(
    "torch._C._functorch.get_interpreter_stack",
    "a batch norm under a torch.func transform",
    "leave the transform out",
    _lists_transforms,
)
peek_interpreter_stack = Private(
    "torch._C._functorch.peek_interpreter_stack",
    "a batch norm, which can't be computed under every torch.func transform,",
    "use layers of torch.nn",
    _sees_a_transform,
)
dispatch_stack_length = Private(
    "torch._C._len_torch_dispatch_stack",
    "the choice of kernels",
    "set SYNCBN_KERNELS=aten",
    _counts_modes,
)
top_saved_tensor_hooks = Private(
    "torch._C._autograd._top_saved_tensors_default_hooks",
    'memory="recompute"',
    'take memory="keep"',
    _shows_hooks,
)
make_wrapper_subclass = Private(
    "torch.Tensor._make_wrapper_subclass", "fuse_activation=True", "leave fuse_activation out", _makes_a_shell
)
disable_torch_function = Private(
    "torch._C.DisableTorchFunctionSubclass", "fuse_activation=True", "leave fuse_activation out", _disables_functions
)
disable_all_torch_functions = Private(
    "torch._C.DisableTorchFunction", "what reads a model's graph", "don't give it example_input", _hides_from_modes
)
resolve_process_group = Private(
    "torch.distributed.distributed_c10d._resolve_process_group",
    "synchronization under torch.compile",
    "compile the parts between the norms",
    callable,  # compat compares the group that it returns
)
