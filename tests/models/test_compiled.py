"""A whole converted ResNet, compiled into one graph inside DDP, trains like one process."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.models.resnet import BasicBlock, ResNet
from syncbn.norm.core import compat
from tests.ranks import Ranks

SHARES = [3, 5]
STEPS = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, in_channels=1, stem="cifar", width=4).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, sum(SHARES), 1, 16, 16, generator=generator, dtype=torch.float64)
    return list(zip(images, torch.randint(5, (STEPS, sum(SHARES)), generator=generator), strict=True))


def train(model: nn.Module, loss: Callable[[Tensor], Tensor], rank: int | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in batches():
        images, labels = batch if rank is None else (part.split(SHARES)[rank] for part in batch)
        optimizer.zero_grad()
        loss(F.cross_entropy(model(images), labels, reduction="none")).backward()
        optimizer.step()


def train_compiled() -> dict[str, Tensor]:
    torch.compiler.reset()
    net = syncbn.convert(network(), "sync")
    # Everything but the C++ compiler, which takes minutes for a whole network on a busy machine. It raises where a
    # graph would break.
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    model = DistributedDataParallel(compiled, **compat.ddp_without_buffers())
    train(model, syncbn.mean_over_ranks, torch.distributed.get_rank())
    return {name: value.detach() for name, value in net.state_dict().items()}


@pytest.mark.distributed
def test_a_compiled_resnet_in_ddp_is_one_graph_and_trains_as_one_process(ranks: Callable[[int], Ranks]) -> None:
    alone = network()  # torch's own batch normalization, in eager mode, over all samples
    train(alone, torch.mean)
    expected = alone.state_dict()

    for state in ranks(2).run(train_compiled):
        assert state.keys() == expected.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
