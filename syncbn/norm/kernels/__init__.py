"""The passes over memory that a batch normalization makes, in the order it makes them.

Each module has the same functions; all statistics are per channel, in float32, or float64 for a float64 input:

- `moments(x)`: mean and M2 = Σ(x - mean)² of this rank's samples;
- `normalize(x, mean, var, eps, weight, bias)`: y;
- `normalize_activate(x, mean, var, eps, weight, bias, residual, slope)`: y = a(x̂·weight + bias + residual), where
  a(z) = z if z > 0 else slope·z; residual may be None, a slope of 0 is ReLU's, one of 1 means no activation;
- `reduce_grad(dy, x, mean, var, eps)`: Σdy and Σdy·x̂;
- `reduce_grad_activate(dy, y, x, mean, var, eps, slope)`: Σdz, Σdz·x̂ and dz = dy where y > 0, slope·dy elsewhere;
- `input_grad(dy, x, mean, var, eps, weight, mean_dy, mean_dy_xhat)`: dx;
- `row_dots(parts, b)`: Σ over each row of a·b, (R, D), for each a of `parts`: (K, R).

`cpu` and `cuda` are ATen's kernels, without autograd. `plain` is made of differentiable operations: it serves higher
derivatives, tracing and every other device. `native`, a small C++ library for float32 on CPU, is asked before them.

The environment variable SYNCBN_KERNELS, read at the import, forces a choice: `aten` for no more than ATen's kernels,
`native` to fail where there is no library, `triton` for those of `triton`, on CUDA, which nothing else imports.
"""

import os
from types import ModuleType

from torch import Tensor

from syncbn.norm.kernels import cpu, cuda, native, plain


def kernels_for(x: Tensor) -> ModuleType:
    """The fastest kernels for the device of `x`."""
    if _FIRST is not None and _FIRST.serves(x):
        return _FIRST
    return {"cpu": cpu, "cuda": cuda}.get(x.device.type, plain)


def _asked_first(choice: str) -> ModuleType | None:
    """The module that SYNCBN_KERNELS chooses; `native` when it is empty."""
    if choice == "aten":
        return None
    if choice == "triton":
        try:
            from syncbn.norm.kernels import triton
        except ModuleNotFoundError as error:
            raise ImportError(
                f"SYNCBN_KERNELS=triton needs Triton ({error}): pip install triton, or leave SYNCBN_KERNELS unset"
            ) from error
        triton.check_device()
        return triton
    if choice not in ("", "native"):
        raise ValueError(f"SYNCBN_KERNELS must be aten, native or triton, or unset for the fastest; got {choice!r}")
    if choice and isinstance(why := native.library(), str):
        raise RuntimeError(f"SYNCBN_KERNELS=native, but the library can't be had: {why}")
    return native


_FIRST = _asked_first(os.environ.get("SYNCBN_KERNELS", ""))
