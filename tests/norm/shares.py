"""One training step of any norm on a rank's share of a batch, and the ranks' steps joined into one process's."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import syncbn


@dataclass
class Share:
    """A norm with its parameters, a whole batch, and each rank's number of samples."""

    norm: str
    x: Tensor
    dy: Tensor
    sizes: list[int]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None
    traced: bool = False

    def layer(self) -> nn.Module:
        """Make the layer in the dtype of the parameters, with fresh running statistics."""
        layer = syncbn.norm_layer(self.norm, **self.options)(self.x.shape[1])
        for name, value in self.parameters.items():
            parameter = layer.get_parameter(name)
            parameter.data = value.clone()
        return layer.double() if self.x.dtype == torch.float64 else layer


@dataclass
class Trained:
    """Results of one step: output, gradient of the input, gradients of parameters, buffers."""

    y: Tensor
    dx: Tensor
    grads: dict[str, Tensor]
    buffers: dict[str, Tensor]


def train(share: Share) -> Trained:
    """One training step on this rank's share."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    rows = slice(sum(share.sizes[:rank]), sum(share.sizes[: rank + 1]))
    layer = share.layer()
    if share.traced:
        torch.compiler.reset()  # a limit on recompilations counts across the cases of a process
    # Without Inductor, which is tested for all norms at once and takes a minute.
    forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if share.traced else layer
    x = share.x[rows].clone().requires_grad_()
    y = forward(x) if share.mask is None else forward(x, share.mask[rows])
    assert y.dtype == x.dtype
    y.backward(share.dy[rows])
    return Trained(
        y.detach(),
        x.grad,
        {name: p.grad for name, p in layer.named_parameters()},
        {name: b.clone() for name, b in layer.named_buffers()},
    )


def join(ranks: list[Trained]) -> Trained:
    """Join the ranks' shares as one process's step; buffers must be bitwise equal."""
    for other in ranks[1:]:
        torch.testing.assert_close(other.buffers, ranks[0].buffers, rtol=0, atol=0)
    return Trained(
        torch.cat([rank.y for rank in ranks]),
        torch.cat([rank.dx for rank in ranks]),
        {name: sum(rank.grads[name] for rank in ranks) for name in ranks[0].grads},
        ranks[0].buffers,
    )
