"""Steps otherwise than usual: precision, layout, accumulation, optimizers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import save_on_cpu

from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, grads, images, several_steps, step


@scenario()
def plain(make: Make) -> list[Tensor]:
    model = make()
    return several_steps(model, 3)


@scenario(fuse_activation=True)
def fused_keep(make: Make) -> list[Tensor]:
    return plain(make)


@scenario(fuse_activation=True, memory="recompute")
def fused_recompute(make: Make) -> list[Tensor]:
    return plain(make)


@scenario(fuse_activation=True, memory="invert")
def fused_invert(make: Make) -> list[Tensor]:
    return plain(make)


@scenario()
def in_float64(make: Make) -> list[Tensor]:
    model = make().double()
    for number in range(2):
        model.zero_grad()
        model(images(number).double()).square().sum().backward()
    return grads(model)


@scenario()
def channels_last(make: Make) -> list[Tensor]:
    model = make().to(memory_format=torch.channels_last)
    for number in range(2):
        model.zero_grad()
        model(images(number).to(memory_format=torch.channels_last)).square().sum().backward()
    return grads(model)


@scenario()
def autocast(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(images(number))
        y.float().square().sum().backward()
        found += grads(model)
    return found


@scenario()
def in_bfloat16(make: Make) -> list[Tensor]:
    model = make().to(torch.bfloat16)
    for number in range(2):
        model.zero_grad()
        model(images(number).bfloat16()).square().sum().backward()
    return grads(model)


@scenario()
def accumulated(make: Make) -> list[Tensor]:
    model = make()
    for number in range(4):
        model(images(number)).square().sum().backward()
    return grads(model)


@scenario()
def two_forwards_one_backward(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        (model(images(number)) * model(images(number + 10))).sum().backward()
        found += grads(model)
    return found


@scenario()
def unequal_and_empty_ranks(make: Make) -> list[Tensor]:
    model = make()
    for number in range(2):
        model.zero_grad()
        model(images(number, 5 * dist.get_rank())).square().sum().backward()
    return grads(model)


@scenario()
def an_optimizer(make: Make) -> list[Tensor]:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for number in range(3):
        step(model, number)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@scenario()
def an_optimizer_within_the_backward_pass(make: Make) -> list[Tensor]:
    model = make()

    def update(p: Any) -> None:
        p.data.sub_(p.grad, alpha=0.01)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)
    for number in range(3):
        step(model, number)
    return [p.detach() for p in model.parameters()]


@scenario()
def evaluation_between(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        found += step(model, number)
        model.eval()
        with torch.no_grad():
            found.append(model(images(number)))
        found += step(model, number)
        model.train()
    return found


@scenario()
def offloaded(make: Make) -> list[Tensor]:
    model = make()
    for number in range(2):
        model.zero_grad()
        with save_on_cpu():
            loss = model(images(number)).square().sum()
        loss.backward()
    return grads(model)
