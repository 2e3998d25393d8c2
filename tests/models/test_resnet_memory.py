"""A ResNet that saves less for the backward pass computes the same: alone, on ranks, compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.models import resnet
from syncbn.models.residual import ResidualBlock
from syncbn.norm import norm_layer
from tests.ranks import Ranks

MODES: dict[str, dict[str, Any]] = {
    "keep": {"norm": norm_layer("sync", fuse_activation=True)},
    "recompute": {"norm": norm_layer("sync", fuse_activation=True, memory="recompute")},
    "invert": {"norm": norm_layer("sync", fuse_activation=True, memory="invert"), "activation": "leaky_relu"},
    "checkpointed": {"checkpoint_blocks": True},
    "checkpointed, recompute": {
        "norm": norm_layer("sync", fuse_activation=True, memory="recompute"),
        "checkpoint_blocks": True,
    },
    "checkpointed, invert": {
        "norm": norm_layer("sync", fuse_activation=True, memory="invert"),
        "activation": "leaky_relu",
        "checkpoint_blocks": True,
    },
}


def network(name: str, mode: str | None, **options: Any) -> nn.Module:
    """In float64, with scales and shifts that aren't 1 and 0; `mode=None`: separate layers."""
    torch.manual_seed(0)
    how = {} if mode is None else MODES[mode]
    net = getattr(resnet, name)(**{"norm": "sync", "num_classes": 5, "width": 4} | how | options)
    for module in net.modules():
        if isinstance(module, syncbn.SyncBatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.double()


def separate(name: str, mode: str, **options: Any) -> nn.Module:
    """The network of a mode with separate layers that keep everything."""
    return network(name, None, activation=MODES[mode].get("activation", "relu"), **options)


def step(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output, and all gradients and buffers after a step."""
    y = net(images)
    y.square().mean().backward()
    bare = net.module if isinstance(net, DistributedDataParallel) else net
    grads = {f"d{key}": parameter.grad for key, parameter in bare.named_parameters()}
    return {"y": y.detach(), **grads, **dict(bare.named_buffers())}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        size = max(value.abs().max().item(), 1e-3)
        assert (got[key] - value).abs().max().item() <= tolerance * size, key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("placement", ["post_conv", "pre_activation"])
def test_the_whole_network_is_that_of_separate_layers(mode: str, placement: str) -> None:
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    net, plain = network("resnet50", mode, placement=placement), separate("resnet50", mode, placement=placement)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert_equal(step(net, images), step(plain, images), 1e-9)
    assert_equal({"y": net.eval()(images)}, {"y": plain.eval()(images)}, 1e-9)


def step_on_rank(mode: str, images: Tensor) -> dict[str, Tensor]:
    net = DistributedDataParallel(network("resnet18", mode, stem="cifar"))
    return step(net, images.chunk(dist.get_world_size())[dist.get_rank()])


@pytest.mark.distributed
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_under_ddp_are_one_process(ranks: Callable[[int], Ranks], mode: str) -> None:
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    expected = step(separate("resnet18", mode, stem="cifar"), images)
    first, second = ranks(2).run(step_on_rank, mode, images)
    assert_equal(first | {"y": torch.cat([first["y"], second["y"]])}, expected, 1e-9)
    assert first["bn1.num_batches_tracked"].item() == 1
    assert first["layer1.0.bn1.num_batches_tracked"].item() == 1


# torch's own: while it traces, it looks at `.grad` of what goes into a block.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("mode", "backend"),
    [
        ("checkpointed", "aot_eager"),
        ("checkpointed, invert", "aot_eager"),
        # Inductor alone takes what goes into the block, a tensor to be computed again.
        pytest.param("recompute", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks(mode: str, backend: str) -> None:
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    expected = step(separate("resnet18", mode, stem="cifar"), images)
    net = network("resnet18", mode, stem="cifar")
    torch.compiler.reset()
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
    for block in (blocks[0], blocks[2]):
        block.compile(fullgraph=True, backend=backend)
    assert_equal(step(net, images), expected, 1e-9)
    assert blocks[0].bn1.num_batches_tracked.item() == 1


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_traces_look_into_blocks(checkpoint_blocks: bool) -> None:
    net = resnet.resnet18("cross_iteration", stem="cifar", width=4, checkpoint_blocks=checkpoint_blocks)
    assert all(norm.is_attached for norm in net.modules() if isinstance(norm, syncbn.CrossIterationBatchNorm))
    net = resnet.resnet18(stem="cifar", width=4, checkpoint_blocks=checkpoint_blocks)
    syncbn.convert(net, "sync", fuse_activation=True)
    assert all(norm.fuse_activation for norm in net.modules() if isinstance(norm, syncbn.SyncBatchNorm))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'elu'; allowed: 'relu', 'leaky_relu'"):
        resnet.resnet18(activation="elu")
    with pytest.raises(ValueError, match=r'sets γ to 0, by which memory="invert" divides'):
        resnet.resnet18(norm_layer("sync", fuse_activation=True, memory="invert"), zero_init_residual=True)
    relus = resnet.resnet18(norm_layer("sync", fuse_activation=True, memory="invert"), stem="cifar", width=4)
    with pytest.raises(ValueError, match="ReLU doesn't allow"):
        relus(torch.randn(2, 3, 8, 8))
