"""Steps of the layer under test on one rank of a group, run by `Ranks.run`."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import syncbn
from tests.norm.oracle import Step


@dataclass
class Batch:
    """A whole batch and each rank's number of samples."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor
    sizes: list[int]
    mask: Tensor | None = None
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    compiled: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def share(self, rank: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Slice x, dy and mask for a rank, in the case's dtype and layout."""
        start = sum(self.sizes[:rank])
        stop = start + self.sizes[rank]
        mask = None if self.mask is None else self.mask[start:stop]
        return self._laid_out(self.x[start:stop]), self._laid_out(self.dy[start:stop]), mask

    def _laid_out(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.dtype)
        if self.channels_last:
            return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
        return tensor.contiguous()


def layer_for(batch: Batch) -> syncbn.SyncBatchNorm:
    layer = syncbn.SyncBatchNorm(batch.x.shape[1], **batch.options)
    if batch.dtype == torch.float64:
        layer.double()
    if layer.weight is not None:
        layer.weight.data.copy_(batch.weight)
    if layer.bias is not None:
        layer.bias.data.copy_(batch.bias)
    return layer


def train(batch: Batch) -> Step:
    """One training step on this rank's share."""
    x, dy, mask = batch.share(dist.get_rank() if dist.is_initialized() else 0)
    layer = layer_for(batch)
    x.requires_grad_()
    if batch.compiled:
        torch.compiler.reset()  # a limit on recompilations counts across the cases of a process
    forward = torch.compile(layer, fullgraph=True) if batch.compiled else layer
    y = forward(x, mask)
    assert y.dtype == batch.dtype
    assert _layout(y) == _layout(x), "the memory format is kept"
    y.backward(dy)
    return Step(y.detach(), x.grad, *_grads(layer), *_buffers(layer))


def _layout(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


def _grads(layer: syncbn.SyncBatchNorm) -> tuple[Any, Any]:
    return tuple(None if p is None else p.grad for p in (layer.weight, layer.bias))


def _buffers(layer: syncbn.SyncBatchNorm) -> tuple[Any, Any]:
    return tuple(None if b is None else b.clone() for b in (layer.running_mean, layer.running_var))


def gather(steps: list[Step]) -> Step:
    """Gather the ranks' steps as one process's: join shares, sum the parameters' gradients."""
    for step in steps[1:]:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(step, name), getattr(steps[0], name), rtol=0, atol=0)
    return Step(
        torch.cat([s.y for s in steps]),
        torch.cat([s.dx for s in steps]),
        None if steps[0].dweight is None else sum(s.dweight for s in steps),
        None if steps[0].dbias is None else sum(s.dbias for s in steps),
        steps[0].running_mean,
        steps[0].running_var,
    )
