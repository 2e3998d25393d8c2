"""Interface of the kernels: one signature, formula and docstring per pass."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

_threshold_backward: Any = torch.ops.aten.threshold_backward
_leaky_relu_backward: Any = torch.ops.aten.leaky_relu_backward

# A tensor of any other type may differ from the numbers in its memory.
PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


class ChannelAffine(NamedTuple):
    """Affine map of each channel: y = x̂ · weight + bias, with x̂ = (x - mean) / sqrt(var + eps).

    All are (C,), in the dtype of the statistics: float64 for a float64 input, else float32. A weight of None is 1, a
    bias of None 0.
    """

    mean: Tensor
    var: Tensor
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor is backed by its own memory.

    Empty ones aren't, nor are zero tensors of forward-mode autograd, nor the batched tensors of `torch.func.vmap` and
    batched gradients.
    """
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:
        return False


class Kernels(ABC):
    """Passes over memory of a batch normalization, in their order.

    x, y, dy and residual are (N, C, *) of one dtype. Sums are over this rank's samples, in the dtype of the statistics.
    Tensors may have any memory layout. Except in `PlainKernels`, autograd isn't recorded.

    A subclass implements the abstract passes and `serves`. The other passes are defined by these, and overridden where
    one pass can do the work of two.
    """

    name: ClassVar[str]
    """What benchmarks and reports call them."""

    @abstractmethod
    def serves(self, *tensors: Tensor) -> bool:
        """Whether these kernels can read all of `tensors`: the input and, in a backward pass, the gradient.

        They may have any device, dtype and layout, may be subclasses, and views with lazy bits, such as negated ones.
        False is always safe: other kernels are used then.
        """

    @abstractmethod
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean and M2 = Σ(x - mean)², (C,), in float64 or the statistics' dtype, and the number of samples."""

    @abstractmethod
    def normalize(self, x: Tensor, affine: ChannelAffine) -> Tensor:
        """Compute y, in the dtype of `x`."""

    def normalize_activate(self, x: Tensor, affine: ChannelAffine, residual: Tensor | None, slope: float) -> Tensor:
        """a(y + residual), with a(z) = z where z > 0 and slope·z elsewhere: a slope of 0 is ReLU's, 1 no activation."""
        z = self.normalize(x, affine)
        if residual is not None:
            z.add_(residual)
        if slope == 1:
            return z
        return torch.relu_(z) if slope == 0 else torch.nn.functional.leaky_relu_(z, slope)

    @abstractmethod
    def reduce_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine) -> tuple[Tensor, Tensor]:
        """Compute Σdy and Σdy·x̂."""

    def reduce_grad_activate(
        self, dy: Tensor, y: Tensor, x: Tensor, affine: ChannelAffine, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Σdz, Σdz·x̂, and the gradient before the activation: dz = dy where y > 0, slope·dy elsewhere."""
        if slope == 1:
            dz = dy
        elif slope == 0:
            dz = _threshold_backward(dy, y, 0)
        else:
            dz = _leaky_relu_backward(dy, y, slope, True)
        return *self.reduce_grad(dz, x, affine), dz

    @abstractmethod
    def input_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine, mean_dy: Tensor, mean_dy_xhat: Tensor) -> Tensor:
        """dx = weight / sqrt(var + eps) · (dy - mean_dy - x̂ · mean_dy_xhat), in the dtype of `x`."""

    def row_dots(self, parts: Sequence[Tensor], b: Tensor) -> Tensor:
        """<a_r, b_r> for each row of `b` (R, D) and each a of `parts`: (K, R).

        A part (R, D) has a row for each row of `b`; a part (G, D) has one for each R / G consecutive rows.
        """
        return torch.stack([torch.einsum("gd,gnd->gn", a, b.view(len(a), -1, b.shape[1])).flatten() for a in parts])
