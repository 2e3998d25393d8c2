"""Kernels for float32 on CPU, in a small C++ library, native.cpp.

Each reads and writes every tensor once, in any memory format. The machine's C++ compiler builds it for the machine's
processor on first use, in a second or two; without a compiler, ATen's kernels are used.
"""

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from syncbn.norm.kernels import aten_cpu as cpu
from syncbn.norm.kernels import build
from syncbn.norm.kernels.interface import PLAIN_TYPES, ChannelAffine, Kernels, in_memory


@functools.cache
def library() -> ctypes.CDLL | str:
    """Load the compiled library, or say why there is none."""
    loaded = build.load()
    if not isinstance(loaded, str):
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, f"syncbn_{name}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in arguments], None
    return loaded


# Argument types by letter: pointer, 64-bit integer, double, float, C int.
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_int64,
    "d": ctypes.c_double,
    "f": ctypes.c_float,
    "i": ctypes.c_int,
}
_ARGUMENTS = {
    "moments": "pnnnppi",
    "normalize": "pnnnppdpppfpi",
    "reduce_grad": "ppnnnppdppi",
    "reduce_grad_activate": "pppnnnppdfpppi",
    "input_grad": "ppnnnppdppppi",
    "row_dots": "ppnpnnpi",
    # of channels.cpp
    "pack_moments": "pppnp",
    "unpack_moments": "pnppp",
    "statistics": "pppnpp",
    "means": "ppnp",
    "track": "pppndppp",
}


class NativeKernels(Kernels):
    """Functions of native.cpp, for float32 tensors in this process's memory."""

    name = "native"

    def serves(self, *tensors: Tensor) -> bool:
        """Whether all are plain float32 tensors in memory, and the library is available."""
        for tensor in tensors:  # a generator takes longer than its checks
            if not holds_numbers(tensor, torch.float32):
                return False
        return not isinstance(library(), str)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """See `Kernels`."""
        x = cpu.dense(x)
        channels = x.shape[1]
        mean, m2 = torch.empty(2, channels, dtype=torch.float64, device=x.device).unbind()
        _run("moments", x, *_sizes(x), mean, m2)
        return mean, m2, x.numel() // channels

    def normalize(self, x: Tensor, affine: ChannelAffine) -> Tensor:
        """See `Kernels`."""
        return self.normalize_activate(x, affine, None, 1.0)

    def normalize_activate(self, x: Tensor, affine: ChannelAffine, residual: Tensor | None, slope: float) -> Tensor:
        """See `Kernels`."""
        x = cpu.dense(x)
        residual = None if residual is None else _like(residual, x)
        mean, var, weight, bias = _per_channel(affine.mean, affine.var, affine.weight, affine.bias)
        y = torch.empty_like(x)
        _run("normalize", x, *_sizes(x), mean, var, affine.eps, weight, bias, residual, slope, y)
        return y

    def reduce_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = cpu.dense(x)
        dy, (mean, var) = _like(dy, x), _per_channel(affine.mean, affine.var)
        sum_dy, sum_dy_xhat = torch.empty(2, x.shape[1], dtype=torch.float32, device=x.device).unbind()
        _run("reduce_grad", dy, x, *_sizes(x), mean, var, affine.eps, sum_dy, sum_dy_xhat)
        return sum_dy, sum_dy_xhat

    def reduce_grad_activate(
        self, dy: Tensor, y: Tensor, x: Tensor, affine: ChannelAffine, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        x = cpu.dense(x)
        dy, y, (mean, var) = _like(dy, x), _like(y, x), _per_channel(affine.mean, affine.var)
        dz = torch.empty_like(x)
        sum_dz, sum_dz_xhat = torch.empty(2, x.shape[1], dtype=torch.float32, device=x.device).unbind()
        _run("reduce_grad_activate", dy, y, x, *_sizes(x), mean, var, affine.eps, slope, dz, sum_dz, sum_dz_xhat)
        return sum_dz, sum_dz_xhat, dz

    def input_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine, mean_dy: Tensor, mean_dy_xhat: Tensor) -> Tensor:
        """See `Kernels`."""
        x = cpu.dense(x)
        dy = _like(dy, x)
        mean, var, weight, *means = _per_channel(affine.mean, affine.var, affine.weight, mean_dy, mean_dy_xhat)
        dx = torch.empty_like(x)
        _run("input_grad", dy, x, *_sizes(x), mean, var, affine.eps, weight, *means, dx)
        return dx

    def row_dots(self, parts: Sequence[Tensor], b: Tensor) -> Tensor:
        """See `Kernels`. A row of `b` is read once for all parts."""
        b, *parts = map(_readable, (b, *parts))
        dots = torch.empty(len(parts), len(b), dtype=torch.float32, device=b.device)
        addresses = (ctypes.c_void_p * len(parts))(*(part.data_ptr() for part in parts))
        neighbours = (ctypes.c_int64 * len(parts))(*(len(b) // len(part) for part in parts))
        _run("row_dots", addresses, neighbours, len(parts), b, *b.shape, dots)
        return dots


NATIVE = NativeKernels()


def holds_numbers(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether it is a plain tensor of this dtype, in this process's memory."""
    # Cheapest checks first: a layer asks several times a step.
    return (
        tensor.is_cpu
        and type(tensor) in PLAIN_TYPES
        and tensor.dtype is dtype
        and tensor.layout is torch.strided
        and not tensor.is_neg()  # its memory has the opposite sign
        and in_memory(tensor)
    )


def run(name: str, *arguments: Any) -> None:
    """Call a library function with the addresses of tensors, which the caller keeps alive, and with numbers.

    Where a number is expected, a tensor is one: users set a layer's eps and momentum to tensors, too.
    """
    values = [
        (argument.data_ptr() if letter == "p" else argument.item()) if isinstance(argument, Tensor) else argument
        for letter, argument in zip(_ARGUMENTS[name], arguments, strict=True)
    ]
    _functions()[name](*values)


def _run(name: str, *arguments: Any) -> None:
    run(name, *arguments, torch.get_num_threads())


@functools.cache
def _functions() -> dict[str, Any]:
    loaded = library()
    assert not isinstance(loaded, str)  # checked by `serves`
    return {name: getattr(loaded, f"syncbn_{name}") for name in _ARGUMENTS}


def _per_channel(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else _readable(tensor) for tensor in tensors]


def _readable(tensor: Tensor) -> Tensor:
    """Contiguous float32 copy, or the tensor itself. The check is cheaper than three conversions."""
    if tensor.dtype is torch.float32 and tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.to(torch.float32).contiguous().resolve_neg()


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    return cpu.like(tensor.to(torch.float32), x)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(N, C, S) of a contiguous tensor, (N·S, C, 1) of a channels-last one."""
    channels, inner = x.shape[1], math.prod(x.shape[2:]) if x.is_contiguous() else 1
    return x.numel() // (channels * inner), channels, inner
