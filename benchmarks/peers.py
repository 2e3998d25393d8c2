"""Peers that our layers and trainer are compared with, written from their papers and tuned as their users would."""

import collections
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class AllGatherBatchNorm(nn.Module):
    """SyncBN without custom kernels: all-gathers every rank's moments and leaves the backward pass to autograd.

    Each rank sends its mean, mean of squares and count through a differentiable all-gather. Their weighted averages
    give a scale and shift per channel. Traffic grows with the number of ranks.
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
        gathered = _AllGather.apply(local) if dist.is_initialized() else local.unsqueeze(0)
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


class _AllGather(torch.autograd.Function):
    """Gather every rank's tensor as (world_size, n); the gradient of a rank's tensor is summed over all ranks."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(dist.get_world_size() * len(tensor))
        # The second is its name before torch 2.13.
        gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
        gather(gathered, tensor.contiguous())
        return gathered.view(-1, len(tensor))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def copy_least(x: Tensor, dy: Tensor, y: Tensor, dx: Tensor) -> None:
    """Memory traffic that a batch normalization needs at least: x; x to y; x and dy; x and dy to dx."""
    x, dy, y, dx = (_as_it_lies(tensor) for tensor in (x, dy, y, dx))
    x.sum()
    y.copy_(x)
    torch.dot(x, dy)
    torch.add(x, dy, out=dx)


def _as_it_lies(tensor: Tensor) -> Tensor:
    return (tensor if tensor.is_contiguous() else tensor.movedim(1, -1)).view(-1)


class JacobianBatchNorm(nn.Module):
    """Cross-iteration batch normalization with autograd derivatives of its statistics, in one process.

    Follows Yao et al. (CVPR 2021): in each iteration autograd differentiates the mean and the mean of squares of every
    channel by that channel's filter. One backward pass each gives all channels, since a channel's statistics depend on
    no other filter. A window keeps both, their derivatives, and the filters at that time.

    Args:
        conv: convolution before the layer.
        window: number of iterations, including the current one.
    """

    def __init__(self, conv: nn.Conv2d, window: int = 8, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv = [conv]  # in a list, so that it isn't registered twice
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(conv.out_channels))
        self.bias = nn.Parameter(torch.zeros(conv.out_channels))
        self.register_buffer("running_mean", torch.zeros(conv.out_channels))
        self.register_buffer("running_var", torch.ones(conv.out_channels))
        self.slots: collections.deque[tuple[Tensor, ...]] = collections.deque(maxlen=window - 1)

    def forward(self, y: Tensor) -> Tensor:
        filters = self.conv[0].weight
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        squares = var + mean.square()
        means, mean_squares = [mean], [squares]
        with torch.no_grad():
            for old_mean, old_squares, d_mean, d_squares, old_filters in self.slots:
                change = filters - old_filters
                means.append(old_mean + (d_mean * change).sum((1, 2, 3)))
                mean_squares.append(old_squares + (d_squares * change).sum((1, 2, 3)))
        d_mean, d_squares = (torch.autograd.grad(s.sum(), filters, retain_graph=True)[0] for s in (mean, squares))
        self.slots.append((mean.detach(), squares.detach(), d_mean, d_squares, filters.detach().clone()))

        carried = torch.stack(means)
        mean = carried.mean(0)
        var = torch.maximum(torch.stack(mean_squares), carried.square()).mean(0) - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return y * scale.view(-1, 1, 1) + (self.bias - mean * scale).view(-1, 1, 1)


def with_jacobians(net: nn.Module) -> nn.Module:
    """Replace every batch normalization of a ResNet by a `JacobianBatchNorm` of the convolution before it."""
    for module in list(net.modules()):
        children = dict(module.named_children())
        for name in children:
            before = {"bn": name.replace("bn", "conv"), "1": "0"}.get(name.rstrip("123") or name)
            if isinstance(children[name], nn.BatchNorm2d) and before is not None:
                setattr(module, name, JacobianBatchNorm(children[before]))
    return net


def train_epoch(
    net: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], optimizer: Optimizer, scheduler: LRScheduler, clip: float
) -> float:
    """Train a `DistributedDataParallel` network for an epoch in a plain loop; returns this rank's mean loss."""
    net.train()
    total, count = torch.zeros(()), 0
    for images, labels in loader:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        scheduler.step()
        total += loss.detach() * len(labels)
        count += len(labels)
    return float(total) / count


@torch.no_grad()
def evaluate(net: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy over all ranks' samples."""
    net.eval()
    correct = torch.zeros(2)
    for images, labels in loader:
        correct += torch.tensor([(net(images).argmax(1) == labels).sum(), len(labels)])
    dist.all_reduce(correct)
    return float(correct[0] / correct[1])
