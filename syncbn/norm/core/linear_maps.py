"""Convolutions and linear layers as linear maps of patches, y_c = <θ_c, p> + b_c with filter θ_c and patch p."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core import compat

# Up to this many output positions over all samples, a matrix product is faster than the convolution's weight gradient,
# which spends its time on rearranging the weight.
_FEW_POSITIONS = 64


def filters(module: Any, weight: Tensor) -> Tensor:
    """Filters θ as one row per output channel, (C_out, D). A view, except of a transposed convolution's weight."""
    if not is_transposed(module):
        return weight.reshape(weight.shape[0], -1)
    groups = module.groups
    by_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return by_group.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def patch_sums(module: Any, x: Tensor, output_shape: torch.Size) -> Tensor:
    """Patch sums Σp over samples and positions, (groups, D), the same for all filters of a group.

    It is the gradient of Σy with respect to a filter. Samples are summed first, so it costs a small part of a forward
    pass.
    """
    if isinstance(module, nn.Linear):
        return x.sum(0, keepdim=True)
    ones = x.new_ones((1, module.groups, *output_shape[2:]))
    return _weight_grad(module, ones, x.sum(0, keepdim=True))


def patch_products(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Σ y_c·p over samples and positions, (C_out, D): the gradient of Σy²/2 with respect to the filters."""
    if isinstance(module, nn.Linear):
        return y.t() @ x
    few = y.numel() // y.shape[1] <= _FEW_POSITIONS
    return _products_of_patches(module, x, y) if few and isinstance(module, nn.Conv2d) else _weight_grad(module, y, x)


def _products_of_patches(module: Any, x: Tensor, y: Tensor) -> Tensor:
    x, padding = _padded(module, x)
    patches = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    by_group = patches.unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    outputs = y.flatten(2).unflatten(1, (module.groups, -1)).permute(1, 2, 0, 3).flatten(2)
    return torch.bmm(outputs, by_group).flatten(0, 1)


def _weight_grad(module: Any, grad_output: Tensor, x: Tensor) -> Tensor:
    x, padding = _padded(module, x)
    channels = grad_output.shape[1]
    if is_transposed(module):
        shape = (x.shape[1], channels // module.groups, *module.kernel_size)
    else:
        shape = (channels, x.shape[1] // module.groups, *module.kernel_size)
    grad = compat.convolution_weight_grad(
        grad_output,
        x,
        shape,
        module.stride,
        padding,
        module.dilation,
        is_transposed(module),
        module.output_padding,
        module.groups,
    )
    return filters(module, grad)


def _padded(module: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Apply the padding that the convolution's gradient can't; returns the input and the remaining padding."""
    ahead = compat.padding_ahead(module)
    if module.padding_mode != "zeros":
        return F.pad(x, ahead, mode=module.padding_mode), (0,) * len(module.kernel_size)
    if module.padding == "valid":
        return x, (0,) * len(module.kernel_size)
    if module.padding == "same":
        return F.pad(x, ahead), (0,) * len(module.kernel_size)
    return x, module.padding


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a transposed convolution, whose weight is (C_in, C_out / groups, *kernel)."""
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
