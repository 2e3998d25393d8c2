"""Hooks that look."""

from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, images, several_steps


@scenario()
def hooks_on_weights_and_layers(make: Make) -> list[Tensor]:
    model: Any = make()
    conv = model.blocks[1].conv1
    found: list[list[Tensor]] = [[] for _ in range(5)]  # of each hook; the weight's are called later with overlap
    conv.weight.register_hook(lambda grad: found[0].append(grad.clone()))
    conv.weight.register_post_accumulate_grad_hook(lambda p: found[1].append(p.grad.clone()))
    conv.register_full_backward_hook(lambda module, dx, dy: found[2].extend([dx[0].clone(), dy[0].clone()]))
    conv.register_forward_pre_hook(lambda module, args: found[3].extend([args[0].detach(), module.weight.detach()]))
    conv.register_forward_hook(lambda module, args, output: found[4].extend([args[0].detach(), output.detach()]))
    return [*several_steps(model, 2), *(tensor for tensors in found for tensor in tensors)]


@scenario()
def hooks_on_nodes(make: Make) -> list[Tensor]:
    model: Any = make()
    found: list[Tensor] = []

    def keep(grads: Any, *_: Any) -> None:
        found.extend(grad.clone() for grad in grads if grad is not None)

    def watch(module: Any, args: Any, output: Tensor) -> None:
        output.grad_fn.register_hook(keep)

    def watch_weight(module: Any, args: Any, output: Tensor) -> None:
        for node, _ in output.grad_fn.next_functions:
            if "HandOn" in type(node).__name__:
                node.register_prehook(lambda grads: found.extend(grad.clone() for grad in grads if grad is not None))

    model.blocks[0].conv1.register_forward_hook(watch)
    result = several_steps(model, 2)
    count = len(found)
    model.blocks[0].conv2.register_forward_hook(watch_weight)
    result += several_steps(model, 2)
    assert not any(tensor.isnan().any() for tensor in found)
    return [*result, *found[:count]]


class NoNaN(compat.TorchDispatchMode):
    """Looks for NaN in what expands or copies a gradient."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("expand", "full", "clone", "detach"):
            assert not result.isnan().any()
        return result


@scenario()
def a_mode_that_looks_for_nan(make: Make) -> list[Tensor]:
    model = make()
    with NoNaN():
        return several_steps(model, 2)


@scenario()
def a_hook_that_runs_a_model_in_inference_mode(make: Make) -> list[Tensor]:
    model: Any = make()
    other = make(lambda norm: nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)))

    def look(grad: Tensor) -> None:
        with torch.inference_mode():
            other(images(9))

    model.blocks.register_forward_hook(lambda module, args, output: output.register_hook(look) and None)
    found = several_steps(model, 2)
    assert not any(p.grad.is_inference() for p in model.parameters())
    return found
