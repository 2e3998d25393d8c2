"""Random numbers of a step that is compared with another one: the same for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from syncbn.norm.core import compat

# A constant in place of random numbers, from an operator's arguments. A mask of dropout becomes its mean, by which
# dropout divides, so that dropout is the identity. Noise isn't 0, so that its scale gets a gradient.
_CONSTANTS: dict[str, Callable[..., Any]] = {
    "bernoulli": lambda probabilities, p=None: probabilities if p is None else p,
    "bernoulli_": lambda _, p=0.5: p,
    "exponential_": lambda _, rate=1.0: 1 / rate,
    "normal": lambda mean=0.0, std=1.0, *_: mean + std / 2,
    "normal_": lambda _, mean=0.0, std=1.0: mean + std / 2,
    "poisson": lambda rates: rates,
    "rand": lambda *_: 0.5,
    "rand_like": lambda *_: 0.5,
    "randint": lambda low, high, *_: 0 if isinstance(high, list | tuple) else low,
    "randint_like": lambda _, low, high=None: 0 if high is None else low,
    "randn": lambda *_: 0.5,
    "randn_like": lambda *_: 0.5,
    "uniform_": lambda _, low=0.0, high=1.0: (low + high) / 2,
}
_NAMED = ("p", "mean", "std")  # of their keyword arguments


class WithoutChance(compat.TorchDispatchMode):
    """Gives every sample the same constants where operators draw random numbers.

    Otherwise ranks draw other numbers for a sample than one process does.

    Attributes:
        drawn: names of operators that have no constant here. They draw from a generator with seed 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name.startswith("rrelu_with_noise") and args[4]:
            return _rrelu(*args, inplace=name.endswith("_"))
        torch.manual_seed(0)
        result = func(*args, **kwargs)
        if name in _CONSTANTS:
            _fill(result, _CONSTANTS[name](*args, **{key: kwargs[key] for key in _NAMED if key in kwargs}))
        elif "attention" not in name and name not in self.drawn:  # on CPUs, attention calls dropout's own operators
            self.drawn.append(name)
        return result


def _fill(tensor: Tensor, value: Any) -> None:
    value = torch.as_tensor(value)
    tensor.copy_(value if tensor.is_floating_point() else value.double().round())  # a mask of bool or int


def _rrelu(x: Tensor, noise: Tensor, low: float, high: float, *_: Any, inplace: bool) -> Tensor:
    """Use the mean slope below 0, which the backward pass reads from `noise`."""
    noise.copy_(torch.where(x <= 0, (low + high) / 2, 1.0))
    return x.mul_(noise) if inplace else x * noise
