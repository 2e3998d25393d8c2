"""What tools that read a model's code do with a layer: `torch.fx` takes it as a whole, TorchScript is refused.

Where a layer can't be compiled, `torch.compile` breaks its graph there.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.fx import Proxy

from syncbn.norm.core import compat
from syncbn.norm.core.checks import check_dimensions
from syncbn.norm.core.empty import in_its_place


class Leaf:
    """A layer that a symbolic trace (`torch.fx`, `prepare_qat_fx`) calls as a module, as it calls torch's own.

    A tracer goes into every module from outside of `torch.nn`, and neither checks of the input nor the choice of
    kernels can be traced. Subclasses with a `forward` of their own are leaves, too.
    """

    forward: Callable[..., Any]
    dimensions: list[int] = []  # noqa: RUF012 (replaced, never changed)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward: Any = getattr(cls, "forward", None)
        if forward is not None and not hasattr(forward, "whole"):
            cls.forward = _whole(forward)

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script can't read {type(self).__name__}: trace the model in evaluation mode, "
            "torch.jit.trace(model.eval(), example_input), or script it with torch's own layers, "
            "torch.jit.script(syncbn.convert(model, 'torch'))"
        )


@functools.cache
def keep_out_of_graphs(layer: type, *methods: str) -> None:
    """Disable compilation at run time: the decorator `torch.compiler.disable` would import the slow compiler."""
    for name in methods:
        setattr(layer, name, torch.compiler.disable(getattr(layer, name)))


def _whole(forward: Any) -> Any:
    stand_in = None if compat.COMPILED_SUMS_STAY else in_its_place(forward)

    @functools.wraps(forward)
    def leaf(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, Proxy):
            own, tracer = cast(Any, type(self).forward), cast(Any, first.tracer)
            # Not from a subclass's forward, of which this would be a part.
            if own.whole is forward and tracer.root is not self:
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        if self.dimensions and isinstance(first, Tensor):
            check_dimensions(first, self.dimensions)
        if stand_in is not None and self.training and torch.compiler.is_compiling() and _is_empty(first):
            return stand_in(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    leaf.whole = forward  # type: ignore[attr-defined]
    return leaf


def _is_empty(input: Any) -> bool:
    return isinstance(input, Tensor) and 0 in input.shape
