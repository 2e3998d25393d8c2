"""Backward passes of other kinds: partial, repeated, doubled, failing, nested."""

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, grads, images, several_steps, step


@scenario()
def gradient_of_the_input(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(2):
        x = images(number).requires_grad_()
        found += [*torch.autograd.grad(model(x).square().sum(), x), *step(model, number)]
    return found


@scenario()
def gradients_of_some_weights(make: Make) -> list[Tensor]:
    model: Any = make()
    step(model, 0)
    loss = model(images(1)).square().sum()
    found = [*torch.autograd.grad(loss, [model.fc.weight, model.blocks[0].conv2.weight], retain_graph=True)]
    loss.backward(inputs=[model.blocks[1].conv1.weight, model.stem.bias], retain_graph=True)
    loss.backward()
    return [*found, *grads(model)]


@scenario()
def a_graph_twice(make: Make) -> list[Tensor]:
    model = make()
    step(model, 0)
    loss = model(images(1)).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return grads(model)


@scenario(hidden=None)
def gradient_penalty(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        x = images(number).requires_grad_()
        loss = model(x).square().sum()
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + dx.square().sum()).backward()
        found += grads(model)
    return found


@scenario(hidden=None)
def penalty_on_weights(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        loss = model(images(number)).square().mean()
        first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        (loss + torch.stack([grad.square().sum() for grad in first]).sum()).backward()
        found += [grad.detach() for grad in first] + grads(model)
    return found


class Failing(torch.autograd.Function):
    """The identity, whose gradient fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        raise ArithmeticError("on purpose")


@scenario()
def an_error_in_the_backward_pass(make: Make) -> list[Tensor]:
    model: Any = make()
    several_steps(model, 1)
    model.zero_grad()
    y = Failing.apply(model.blocks[0](F.leaky_relu(model.norm(model.stem(images(5))), 0.1)))
    loss = model.fc(model.blocks[1](y).mean((2, 3))).sum()
    with pytest.raises(ArithmeticError):
        loss.backward()
    return several_steps(model, 2)


@scenario()
def an_error_in_the_forward_pass(make: Make) -> list[Tensor]:
    model: Any = make()
    found = several_steps(model, 1)
    with pytest.raises(RuntimeError):
        model.fc(model.blocks(F.leaky_relu(model.norm(model.stem(images(1))), 0.1)))
    with pytest.raises(RuntimeError):
        model.blocks[1].conv1(images(1))
    return found + several_steps(model, 2)


@scenario()
def a_backward_pass_within(make: Make) -> list[Tensor]:
    model, other, found = make(), make(), []
    for number in range(3):
        for module in (model, other):
            module.zero_grad()
        x = images(number).requires_grad_()

        def inner(_: Tensor, number: int = number) -> None:
            with torch.enable_grad():
                other(images(number)).square().sum().backward()

        x.register_hook(inner)
        model(x).square().sum().backward()
        found += grads(model) + grads(other)
    return found


@scenario(hidden=False)
def anomaly_mode(make: Make) -> list[Tensor]:
    with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly(check_nan=True):
        return several_steps(make())


@scenario(hidden=None)
def on_another_thread(make: Make) -> list[Tensor]:
    model = make()
    found = several_steps(model, 2)
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.extend(several_steps(model, 2)))
        thread.start()
        thread.join()
    return found + several_steps(model, 1)
