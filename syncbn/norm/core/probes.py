"""Small computations whose answers are known: whether torch's private names mean what they are taken for.

Each runs in a thread of its own (`syncbn.norm.core.lookup`).
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from syncbn.norm.core.lookup import TorchDispatchMode


def tells_a_backward_pass(graph_task_id: Callable[[], int]) -> bool:
    outside, inside = graph_task_id(), list[int]()
    x = torch.zeros((), device="cpu", requires_grad=True)
    y = x * 1
    y.register_hook(lambda _: inside.append(graph_task_id()))
    torch.autograd.grad(y, x)
    return isinstance(outside, int) and outside >= -1 and inside[0] >= 0 and inside[0] != outside


def knows_what_runs(will_run: Callable[[Any], bool]) -> bool:
    answers = list[bool]()
    x, w = (torch.ones((), device="cpu", requires_grad=True) for _ in range(2))
    left, right = x * 1, w * 1
    y = left * right
    y.register_hook(lambda _: answers.extend(will_run(z.grad_fn) for z in (left, right)))
    torch.autograd.grad(y, x)
    return answers == [True, False]


def lists_transforms(interpreter_stack: Callable[[], Any]) -> bool:
    seen: list[str] = []

    def function(x: Tensor) -> Tensor:
        seen.extend(interpreter.key().name for interpreter in interpreter_stack())
        return x

    torch.func.vmap(function)(torch.zeros(1, device="cpu"))
    return seen[-1:] == ["Vmap"]


def sees_a_transform(peek: Callable[[], Any]) -> bool:
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        seen.append(peek() is not None)
        return x

    torch.func.vmap(function)(torch.zeros(1, device="cpu"))
    return seen == [True]


def counts_modes(stack_length: Callable[[], int]) -> bool:
    before = stack_length()
    with TorchDispatchMode():
        return stack_length() == before + 1


def shows_hooks(top_hooks: Callable[[bool], Any]) -> bool:
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


def makes_a_shell(make_wrapper_subclass: Callable[..., Any]) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        shell = make_wrapper_subclass(_Probe, (2, 3), strides=(1, 2), dtype=torch.float64, requires_grad=True)
        return shell.shape == (2, 3) and shell.stride() == (1, 2) and shell.requires_grad and shell.data_ptr() == 0


def disables_functions(context: Callable[[], Any]) -> bool:
    x = torch.ones(2, device="cpu").as_subclass(_Probe)
    with context():
        return x.dim() == 1


def hides_from(mode: Any) -> Callable[[Callable[[], Any]], bool]:
    def is_hidden(context: Callable[[], Any]) -> bool:
        seen = []

        class Mode(mode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                seen.append(func)
                return func(*args, **(kwargs or {}))

            __torch_function__ = __torch_dispatch__

        x = torch.ones(2, device="cpu")
        with Mode(), context():
            x.neg()
        return not seen

    return is_hidden


def maps_some(tree_map_only: Callable[..., Any]) -> bool:
    return bool(tree_map_only(int, str, {"a": [1, (2.5, 2)]}) == {"a": ["1", (2.5, "2")]})


def holds(register: str) -> Callable[[Callable[[Any], Any]], bool]:
    def is_held(hooks_of: Callable[[Any], Any]) -> bool:
        module = nn.Identity()
        before = dict(hooks_of(module))
        getattr(module, register)(print)
        return not before and len(hooks_of(module)) == 1

    return is_held


def counts_writes(version_of: Callable[[Tensor], int]) -> bool:
    x = torch.zeros(1, device="cpu")
    before = version_of(x)
    return version_of(x) == before < version_of(x.zero_())


def identifies(identity_of: Callable[[Any], int]) -> bool:
    storages = [torch.UntypedStorage(1) for _ in range(2)]  # without an operation, which a mode might see
    first, second = map(identity_of, storages)
    return isinstance(first, int) and first == identity_of(storages[0]) != second


def refers_weakly(reference: Callable[[Any], Any]) -> bool:
    storage = torch.UntypedStorage(1)
    ref = reference(storage)
    there = not ref.expired()
    del storage
    gc.collect()
    return there and ref.expired()


def tells_writes(schema_of: Callable[[Any], Any]) -> bool:
    given, other, *_ = schema_of(torch.ops.aten.add_.Tensor).arguments
    return given.name == "self" and given.alias_info.is_write and other.alias_info is None


def names_the_overload(name_of: Callable[[Any], str]) -> bool:
    return name_of(torch.ops.aten.add.Tensor) == "Tensor"


def is_of_the_nodes(class_of: Callable[[Any], type]) -> bool:
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return dy

    node = Same.apply(torch.zeros((), device="cpu", requires_grad=True)).grad_fn
    return isinstance(node, class_of(Same)) and hasattr(class_of(Same), "register_prehook")


def is_off(proxy_mode: Callable[[], Any]) -> bool:
    return proxy_mode() is None or hasattr(proxy_mode(), "tracer")
