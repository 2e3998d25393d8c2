"""What comes after a normalization, the sum with a shortcut and the activation, by ATen's kernels."""

from typing import Any

import torch
from torch import Tensor

_threshold_backward: Any = torch.ops.aten.threshold_backward
_leaky_relu_backward: Any = torch.ops.aten.leaky_relu_backward


def activate_(y: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    """a(y + residual) in place of `y`, with a(z) = z where z > 0 and slope · z elsewhere; without autograd."""
    if residual is not None:
        y.add_(residual)
    if slope == 1:
        return y
    return torch.relu_(y) if slope == 0 else torch.nn.functional.leaky_relu_(y, slope)


def activation_grad(dy: Tensor, y: Tensor, slope: float) -> Tensor:
    """dz: dy where y = a(z) is greater than 0, slope · dy elsewhere; without autograd."""
    if slope == 1:
        return dy
    return _threshold_backward(dy, y, 0) if slope == 0 else _leaky_relu_backward(dy, y, slope, True)
