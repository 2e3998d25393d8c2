"""The layers that SyncBatchNorm stands beside, written from their descriptions."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather


class AllGatherBatchNorm(nn.Module):
    """The usual way to synchronize without kernels: gather every rank's moments, and let autograd do the backward pass.

    Each rank sends its mean, mean of squares and count through a differentiable all-gather; the weighted averages
    normalize by a scale and a shift a channel. Its traffic grows with the number of ranks.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        channels, count = x.shape[1], x.numel() // x.shape[1]
        local = torch.cat([x.mean(dims), x.square().mean(dims), x.new_full((1,), count)])
        gathered = torch.stack(list(all_gather(local)) if dist.is_initialized() else [local])
        counts = gathered[:, -1:]
        mean, mean_of_squares = ((gathered[:, :-1] * counts).sum(0) / counts.sum()).split(channels)
        var = mean_of_squares - mean.square()
        with torch.no_grad():
            total = counts.sum()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * total / (total - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * scale.view(shape) + shift.view(shape)
