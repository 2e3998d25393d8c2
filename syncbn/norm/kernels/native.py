"""The passes on CPU in float32, by a small C++ library, native.cpp.

Each reads and writes every tensor once, whatever the memory format. The machine's C++ compiler builds it for the
machine's processor when it is first needed, in a second or two; where there is no compiler, ATen's kernels serve.
"""

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.kernels import aten_cpu as cpu
from syncbn.norm.kernels import build

__all__ = [
    "input_grad",
    "moments",
    "normalize",
    "normalize_activate",
    "reduce_grad",
    "reduce_grad_activate",
    "row_dots",
    "serves",
]


def serves(x: Tensor) -> bool:
    """Whether these kernels take `x`: numbers in this process's memory."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and not isinstance(library(), str)
    )


@functools.cache
def library() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    loaded = build.load()
    if not isinstance(loaded, str):
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, f"syncbn_{name}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in arguments], None
    return loaded


# By a letter each: a pointer, an integer of 64 bits, a double, a float, a C int.
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
}


def moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and M2 of (N, C, *), and the count."""
    x = cpu.dense(x)
    channels = x.shape[1]
    mean, m2 = torch.empty(2, channels, dtype=torch.float64).unbind()
    _run("moments", x, *_sizes(x), mean, m2)
    return mean, m2, x.numel() // channels


def normalize(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y = (x - mean) / sqrt(var + eps) · weight + bias, in the dtype of `x`."""
    return normalize_activate(x, mean, var, eps, weight, bias, None, 1.0)


def normalize_activate(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float,
) -> Tensor:
    """y = a((x - mean) / sqrt(var + eps) · weight + bias + residual), where a(z) = z if z > 0 else slope · z."""
    x = cpu.dense(x)
    residual = None if residual is None else _like(residual, x)
    mean, var, weight, bias = _per_channel(mean, var, weight, bias)
    y = torch.empty_like(x)
    _run("normalize", x, *_sizes(x), mean, var, eps, weight, bias, residual, slope, y)
    return y


def reduce_grad(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Σdy and Σdy·x̂ over this rank's samples."""
    x = cpu.dense(x)
    dy, (mean, var) = _like(dy, x), _per_channel(mean, var)
    sum_dy, sum_dy_xhat = torch.empty(2, x.shape[1], dtype=torch.float32).unbind()
    _run("reduce_grad", dy, x, *_sizes(x), mean, var, eps, sum_dy, sum_dy_xhat)
    return sum_dy, sum_dy_xhat


def reduce_grad_activate(
    dy: Tensor, y: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Σdz and Σdz·x̂ over this rank's samples, and dz: dy where y > 0, slope · dy elsewhere."""
    x = cpu.dense(x)
    dy, y, (mean, var) = _like(dy, x), _like(y, x), _per_channel(mean, var)
    dz = torch.empty_like(x)
    sum_dz, sum_dz_xhat = torch.empty(2, x.shape[1], dtype=torch.float32).unbind()
    _run("reduce_grad_activate", dy, y, x, *_sizes(x), mean, var, eps, slope, dz, sum_dz, sum_dz_xhat)
    return sum_dz, sum_dz_xhat, dz


def input_grad(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    mean_dy: Tensor,
    mean_dy_xhat: Tensor,
) -> Tensor:
    """dx = weight / sqrt(var + eps) · (dy - mean_dy - x̂ · mean_dy_xhat), in the dtype of `x`."""
    x = cpu.dense(x)
    dy = _like(dy, x)
    mean, var, weight, mean_dy, mean_dy_xhat = _per_channel(mean, var, weight, mean_dy, mean_dy_xhat)
    dx = torch.empty_like(x)
    _run("input_grad", dy, x, *_sizes(x), mean, var, eps, weight, mean_dy, mean_dy_xhat, dx)
    return dx


def row_dots(parts: Sequence[Tensor], b: Tensor) -> Tensor:
    """<a_r, b_r> for each row of `b` (R, D) and each a of `parts`: (K, R).

    A part (R, D) has a row for each, a part (G, D) one for each R / G neighbours.
    A row of `b` is read once for all parts.
    """
    b, *parts = (tensor.to(torch.float32).contiguous() for tensor in (b, *parts))
    dots = torch.empty(len(parts), len(b), dtype=torch.float32)
    addresses = (ctypes.c_void_p * len(parts))(*(part.data_ptr() for part in parts))
    neighbours = (ctypes.c_int64 * len(parts))(*(len(b) // len(part) for part in parts))
    _run("row_dots", addresses, neighbours, len(parts), b, *b.shape, dots)
    return dots


def _run(name: str, *arguments: Any) -> None:
    """Call a function of the library with the addresses of tensors, which the caller holds, and the other arguments."""
    loaded = library()
    assert not isinstance(loaded, str)
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    getattr(loaded, f"syncbn_{name}")(*values, torch.get_num_threads())


def _per_channel(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(torch.float32).contiguous() for tensor in tensors]


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    return cpu.like(tensor.to(torch.float32), x)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(N, C, S) of a contiguous tensor, (N·S, C, 1) of one with the channels last."""
    channels, inner = x.shape[1], math.prod(x.shape[2:]) if x.is_contiguous() else 1
    return x.numel() // (channels * inner), channels, inner
