"""In which order a model's norms and layers run: each norm is told which layers come after it, before they do."""

from __future__ import annotations

import copyreg
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from syncbn.norm.core import compat
from syncbn.norm.fusion.deferred import Deferred
from syncbn.norm.fusion.operations import LayerCall, call_of
from syncbn.norm.fusion.overlap import Link, apply, hand_on
from syncbn.norm.fusion.recomputed import Recomputed

# Where a layer keeps its `LayerPlace`, in its `__dict__`.
PLACE = "_overlap_place"


class Order:
    """Predicts, for each call of a norm, the layers that run until the next norm: those of the last forward pass.

    A call is known by the norm and the layer that ran before it. Where a prediction fails there is no overlap: a layer
    that comes unforeseen computes its gradients as without. What is known goes with copies of the model. Forward passes
    of other threads than the first one are left alone, since nodes of several threads have no common order.
    """

    def __init__(self) -> None:
        self.after: dict[tuple[int, int], tuple[int, ...]] = {}
        self._places: weakref.WeakValueDictionary[int, LayerPlace] = weakref.WeakValueDictionary()
        self._thread: int | None = None
        self._last = -1
        self._norm: tuple[int, int] | None = None
        self._since: list[int] = []
        self._ahead: dict[int, deque[Ahead]] = {}

    def depart(self, norm: int) -> None:
        """Make the identities of the layers that come after a norm; it calls this before its own node is made."""
        if not self._is_followed():
            return
        self._learn()
        self._norm, self._since, self._ahead = (self._last, norm), [], {}
        if torch.is_grad_enabled():
            for number in self.after.get(self._norm, ()):
                place = self._places.get(number)
                ahead = None if place is None else place.go_ahead()
                if ahead is not None:
                    self._ahead.setdefault(number, deque()).append(ahead)

    def arrive(self, place: LayerPlace) -> Ahead | None:
        """The identities for a layer that is called now."""
        if not self._is_followed():
            return None
        self.know(place)
        self._last = place.number
        self._since.append(place.number)
        waiting = self._ahead.get(place.number)
        return waiting.popleft() if waiting else None

    def know(self, place: LayerPlace) -> None:
        """Find a layer's place by its number from now on."""
        self._places[place.number] = place

    def end(self) -> None:
        """The forward pass is over: its backward pass has begun."""
        if self._norm is not None:
            self._learn()
            self._norm, self._last, self._ahead = None, -1, {}

    def foretell(self, numbers: list[tuple[bool, int]]) -> None:
        """Learn from a recorded pass: whether each is a norm, and its number."""
        norm, last = None, -1
        for is_norm, number in numbers:
            if is_norm:
                norm = (last, number)
            else:
                last = number
                if norm is not None:
                    self.after[norm] = (*self.after.get(norm, ()), number)

    def _learn(self) -> None:
        if self._norm is not None and self._since:
            self.after[self._norm] = tuple(self._since)

    def _is_followed(self) -> bool:
        if self._thread is None:
            self._thread = threading.get_ident()
        return self._thread == threading.get_ident() and not compat.in_backward()  # in it, a pass is repeated

    def __reduce__(self) -> tuple[Any, ...]:
        return _order, (dict(self.after),)


def _order(after: dict[tuple[int, int], tuple[int, ...]]) -> Order:
    order = Order()
    order.after = after
    return order


class Ahead(NamedTuple):
    """A layer's parameters, and views of them for its next call."""

    link: Link
    weight: Tensor
    weight_view: Tensor
    bias: Tensor | None
    bias_view: Tensor | None

    def lead(self, call: LayerCall) -> LayerCall | None:
        """The call with the views; None where it isn't with these parameters, as they were."""
        is_same = call.weight is self.weight and call.bias is self.bias and _is_same(self.weight, self.weight_view)
        if not is_same or (self.bias is not None and not _is_same(self.bias, self.bias_view)):
            return None
        return call._replace(weight=self.weight_view, bias=self.bias_view)


def _is_same(parameter: Tensor, view: Tensor | None) -> bool:
    """Whether the parameter still holds the same memory, in the same shape."""
    return view is not None and parameter.data_ptr() == view.data_ptr() and parameter.shape == view.shape


class NormPlace:
    """A norm's place in the order."""

    def __init__(self, order: Order, number: int) -> None:
        self.order = order
        self.number = number

    def depart(self) -> None:
        """See `Order.depart`."""
        self.order.depart(self.number)


class LayerPlace:
    """A layer's place in the order.

    It knows the layer's own parameter: a layer that has another one is left alone. It may be sharded (FSDP), computed
    by a parametrization, or given for one call only.
    """

    def __init__(self, order: Order, number: int, weight: nn.Parameter | None) -> None:
        self.order = order
        self.number = number
        self._weight = None if weight is None else weakref.ref(weight)
        self._module: weakref.ref[nn.Module] | None = None

    def arrive(self, module: nn.Module) -> _Calls | None:
        """What is to see the functions that the layer calls; None where there is nothing to do for it."""
        if not module.training:
            return None
        self.stand_for(module)
        ahead = self.order.arrive(self)
        weight = self._own_weight()
        if weight is None or not torch.is_grad_enabled() or compat.is_tracing():
            return None
        return _Calls(weight, ahead)

    def stand_for(self, module: nn.Module) -> None:
        """Be the place of a layer; of a copy of it, as soon as that is called."""
        if self._module is None or self._module() is not module:
            self._module = weakref.ref(module)

    def go_ahead(self) -> Ahead | None:
        """The identities on the layer's parameters."""
        weight = self._own_weight()
        if weight is None or self._module is None:
            return None
        module = self._module()
        assert module is not None  # it has the weight
        bias = module._parameters.get("bias")
        link = Link(self.order.end)
        weight_view, bias_view = hand_on(link, weight, bias)
        return Ahead(link, weight, weight_view, bias, bias_view)

    def _own_weight(self) -> nn.Parameter | None:
        module = None if self._module is None else self._module()
        weight = None if module is None else module._parameters.get("weight")
        return weight if weight is not None and weight is self._known() and weight.requires_grad else None

    def _known(self) -> nn.Parameter | None:
        return None if self._weight is None else self._weight()

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerPlace, (self.order, self.number, self._known())


class _Calls(TorchFunctionMode):
    """Puts our functions in the place of those of torch that a layer calls with its weight."""

    def __init__(self, weight: nn.Parameter, ahead: Ahead | None) -> None:
        super().__init__()
        self._weight = weight
        self._ahead = ahead

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = kwargs.get("weight", args[1] if len(args) > 1 else None)
        call = call_of(func, args, kwargs) if given is self._weight else None
        dtype = None if call is None else _dtype(call)
        if call is None or dtype is None:
            return func(*args, **kwargs)
        x = call.x.value() if isinstance(call.x, Deferred) else call.x
        call = call._replace(x=x if x.dtype == dtype else x.to(dtype))
        ahead, self._ahead = self._ahead, None  # a view is for one call
        led = None if ahead is None else ahead.lead(call)
        if ahead is None or led is None:
            return apply(call, dtype, None)
        return apply(led, dtype, ahead.link)


def _dtype(call: LayerCall) -> torch.dtype | None:
    """The dtype that the layer computes in; None for what is torch's own affair."""
    x, *parameters = (tensor for tensor in (call.x, call.weight, call.bias) if tensor is not None)
    is_known = type(x) in (Tensor, Recomputed, Deferred) and x.layout is torch.strided and x.is_floating_point()
    if not is_known or forward_ad.unpack_dual(x).tangent is not None:
        return None
    dtypes = {tensor.dtype for tensor in (x, *parameters)}
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # which casts what isn't float64
        return None if torch.float64 in dtypes or kind not in _AUTOCAST else torch.get_autocast_dtype(kind)
    return x.dtype if len(dtypes) == 1 else None


_AUTOCAST = ("cpu", "cuda")  # where it is known to cast the arguments of every convolution and linear layer


class HidesMessages(nn.Module):
    """Ahead of a layer's class: asks the layer's place what to do with the functions that it calls."""

    computes_as_its_base = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        if torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)
        place: LayerPlace | None = self.__dict__.get(PLACE)
        calls = None if place is None else place.arrive(self)
        if calls is None:
            return super().forward(*args, **kwargs)
        with calls:
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, args, *rest = tuple(super().__reduce_ex__(protocol))
        is_usual = function is getattr(copyreg, "__newobj__")  # noqa: B009 (its type is unknown otherwise)
        if not is_usual or HidesMessages not in type(self).__bases__:
            return function, args, *rest
        return _new, (type(self).__bases__[1], *args[1:]), *rest


def add_place(layer: nn.Module, place: LayerPlace) -> None:
    """Give a layer a place, and a class that asks it."""
    layer.__dict__[PLACE] = place
    place.stand_for(layer)
    place.order.know(place)
    if not isinstance(layer, HidesMessages):
        layer.__class__ = _overlapped(type(layer))


def remove_place(layer: nn.Module) -> None:
    """Give a layer its own class back."""
    layer.__dict__.pop(PLACE, None)
    if HidesMessages in type(layer).__bases__:
        layer.__class__ = type(layer).__bases__[1]


def _overlapped(cls: type[nn.Module]) -> Any:
    if cls not in _CLASSES:
        own = {"__module__": cls.__module__, "computes_as_its_base": True}
        _CLASSES[cls] = type(cls.__name__, (HidesMessages, cls), own)
    return _CLASSES[cls]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _new(cls: type[nn.Module], *args: Any) -> nn.Module:
    overlapped = _overlapped(cls)
    layer: nn.Module = overlapped.__new__(overlapped, *args)
    return layer
