"""Models that are sharded or compiled."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, grads, images, several_steps


@scenario(hidden=False)
def fully_sharded(make: Make) -> list[Tensor]:
    model: Any = make()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = []
    for number in range(3):
        model.set_reshard_after_backward(number != 1)
        model.zero_grad()
        model(images(number)).square().sum().backward()
        if number != 1:
            found += [p.grad.to_local().clone() for p in model.parameters()]
    return found


@scenario(hidden=None)
def compiled(make: Make) -> list[Tensor]:
    torch.compiler.reset()
    model: Any = make()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    for number in range(2):
        model.zero_grad()
        run(images(number)).square().sum().backward()
    return grads(model)


@scenario(hidden=None)
def a_compiled_region(make: Make) -> list[Tensor]:
    torch.compiler.reset()
    model: Any = make()
    model.blocks[0].compile(backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings(action="ignore"):  # torch's own, of a graph's input that is no leaf
        return several_steps(model, 3)
