"""The passes over memory that a batch normalization makes, in the order it makes them.

Each module has the same functions; all statistics are per channel, in float32, or float64 for a float64 input:

- `moments(x)`: mean and M2 = Σ(x - mean)² of this rank's samples;
- `normalize(x, mean, var, eps, weight, bias)`: y;
- `reduce_grad(dy, x, mean, var, eps)`: Σdy and Σdy·x̂;
- `input_grad(dy, x, mean, var, eps, weight, mean_dy, mean_dy_xhat)`: dx;
- `row_dots(a, b)`: Σ over each row of a·b, (R, D) -> (R,).

`cpu` and `cuda` are ATen's kernels, without autograd. `plain` is made of differentiable operations: it serves
higher derivatives, tracing and every other device.
"""

from types import ModuleType

from torch import Tensor

from syncbn.norm.kernels import cpu, cuda, plain


def kernels_for(x: Tensor) -> ModuleType:
    """The fastest kernels for the device of `x`."""
    return {"cpu": cpu, "cuda": cuda}.get(x.device.type, plain)
