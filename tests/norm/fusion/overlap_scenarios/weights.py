"""Weights that something else happens to."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, images, several_steps


@scenario()
def frozen_weights(make: Make) -> list[Tensor]:
    model: Any = make()
    found = several_steps(model, 2)
    model.blocks[0].conv1.weight.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    found += several_steps(model, 2)
    model.blocks[0].conv1.weight.requires_grad_(True)
    model.fc.weight.requires_grad_(False)
    return found + several_steps(model, 2)


@scenario()
def parametrized(make: Make) -> list[Tensor]:
    model: Any = make()
    found = several_steps(model, 1)
    parametrizations.weight_norm(model.blocks[0].conv1)
    prune.l1_unstructured(model.blocks[0].conv2, "weight", 0.5)
    torch.manual_seed(0)
    parametrizations.spectral_norm(model.blocks[1].conv1)
    return found + several_steps(model, 3)


@scenario()
def hooks_that_change_weights(make: Make) -> list[Tensor]:
    model: Any = make()

    def clip(module: Any, args: Any) -> None:
        with torch.no_grad():
            module.weight.clamp_(-0.1, 0.1)

    def replace(module: Any, args: Any) -> None:
        module.weight.data = module.weight.data * 0.9

    model.blocks[0].conv1.register_forward_pre_hook(clip)
    model.blocks[1].conv1.register_forward_pre_hook(replace)
    return several_steps(model, 3)


@scenario()
def new_weights(make: Make) -> list[Tensor]:
    model: Any = make()
    found = several_steps(model, 2)
    model.blocks[0].conv1.weight = nn.Parameter(model.blocks[0].conv1.weight.detach() * 2)
    model.blocks[1].conv1.weight.data = model.blocks[1].conv1.weight.data * 2
    return found + several_steps(model, 2)


@scenario(hidden=False)
def assigned(make: Make) -> list[Tensor]:
    model = make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return several_steps(model, 2)


@scenario(hidden=None)
def called_with_other_weights(make: Make) -> list[Tensor]:
    model = make()
    found = several_steps(model, 2)
    other = {name: (p * 1.1).detach().requires_grad_() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, other, (images(3),))
    return [*found, *torch.autograd.grad(y.square().sum(), list(other.values())), *several_steps(model, 1)]
