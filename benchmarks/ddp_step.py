"""Timed training step under `DistributedDataParallel`."""

import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from syncbn.norm.core import compat


class DDPStep:
    """Forward, backward and SGD of a network, started by all ranks together."""

    def __init__(self, net: nn.Module) -> None:
        self.net = DistributedDataParallel(net, **compat.ddp_without_buffers(), gradient_as_bucket_view=True)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def milliseconds(self, images: Tensor, labels: Tensor) -> float:
        """Time one step."""
        dist.barrier()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images), labels).backward()
        self.optimizer.step()
        return 1e3 * (time.perf_counter() - start)
