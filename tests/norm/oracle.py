"""Oracle of batch normalization: float64, one process, the whole batch, by the formula and autograd."""

from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """Results of one training step of the layer. Gradients are those of Σ y·dy."""

    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    running_mean: Tensor
    running_var: Tensor


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, mask: Tensor | None = None) -> Tensor:
    """Compute y by the definition, differentiable; 0 where the mask is False."""
    mask = torch.ones_like(x[:, :1], dtype=torch.bool) if mask is None else mask.unsqueeze(1)
    mask = mask.expand_as(x)
    columns = x.movedim(1, 0)
    y = torch.zeros_like(columns)
    for c, (values, counts) in enumerate(zip(columns, mask.movedim(1, 0), strict=True)):
        chosen = values[counts]
        mean = chosen.mean()
        var = ((chosen - mean) ** 2).mean()
        y[c] = y[c].masked_scatter(counts, (chosen - mean) / (var + eps) ** 0.5 * weight[c] + bias[c])
    return y.movedim(0, 1)


def training_step(
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> Step:
    """Do one step from fresh running statistics (0 and 1)."""
    x, weight, bias = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    y = normalize(x, weight, bias, eps, mask)
    dx, dweight, dbias = torch.autograd.grad((y * dy.double()).sum(), (x, weight, bias))
    counts = (torch.ones_like(x, dtype=torch.bool) if mask is None else mask.unsqueeze(1).expand_as(x)).movedim(1, 0)
    chosen = [v[c] for v, c in zip(x.detach().movedim(1, 0), counts, strict=True)]
    mean = torch.stack([v.mean() for v in chosen])
    unbiased = torch.stack([((v - v.mean()) ** 2).sum() / (len(v) - 1) for v in chosen])
    return Step(y.detach(), dx, dweight, dbias, momentum * mean, 1 - momentum + momentum * unbiased)
