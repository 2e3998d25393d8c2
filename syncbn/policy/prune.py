"""Channels with the smallest |γ| removed for good."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from syncbn.norm.surgery.trace import Example, modes_kept, trace
from syncbn.policy.channels import CONVOLUTIONS, Channels, is_depthwise, is_prunable_norm, kept
from syncbn.policy.layers import buffers_of


@dataclass(frozen=True)
class Cost:
    """What a network costs: operations of a forward pass (multiplications and additions), and parameters."""

    flops: int
    parameters: int


def prune(model: nn.Module, ratio: float, example_input: Example) -> nn.Module:
    """A copy of `model` without the channels whose batch norm scales |γ| are the smallest.

    Channels of all layers are compared with each other. A channel that several layers share, through a residual sum, a
    depthwise convolution or a concatenation, goes from all of them or from none, by its largest |γ|. Convolutions,
    linear layers and batch norms get smaller parameters. The output's channels stay, so do those that flow through
    something that isn't understood (a grouped convolution, a reshape), and at least one channel of each layer. γ and β
    of 0 make the removal exact; otherwise train the result further, with an optimizer made after it. `cost_of` tells
    what was won.

    Train with `syncbn.training.NormL1` first, so that scales of channels that aren't needed go to 0.

    Args:
        model: any model with batch normalization layers that have a scale; it isn't changed.
        ratio: part of the channels to remove, of those that can be; at least 0 and below 1.
        example_input: the model's argument, or a tuple of its arguments, for a forward pass that finds what depends on
            what.

    Raises:
        ValueError: a ratio out of range, or no channel that could be removed.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017,
    https://arxiv.org/abs/1708.06519.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be at least 0 and below 1, got {ratio}")
    pruned = copy.deepcopy(model)
    channels = Channels(trace(pruned, example_input))
    removed = _smallest(channels, ratio)
    for layer in channels.inputs:
        _shrink(layer, channels, removed)
    return pruned


def cost_of(model: nn.Module, example_input: Example) -> Cost:
    """Floating-point operations of one forward pass in evaluation, and the number of parameters."""
    counter = FlopCounterMode(display=False)
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with modes_kept(model), torch.no_grad(), counter:
        model.eval()(*arguments)
    return Cost(counter.get_total_flops(), sum(parameter.numel() for parameter in model.parameters()))


def _smallest(channels: Channels, ratio: float) -> set[int]:
    """The channels to remove."""
    scales: dict[int, float] = {}
    for layer, labels in channels.inputs.items():
        if is_prunable_norm(layer) and isinstance(layer.weight, Tensor):
            for label, scale in zip(labels, layer.weight.detach().abs().tolist(), strict=True):
                root = channels.root(label)
                scales[root] = max(scale, scales.get(root, 0.0))
    fixed = channels.fixed_roots()
    candidates = sorted((root for root in scales if root not in fixed), key=lambda root: scales[root])
    if not candidates:
        raise ValueError(
            "no channel can be removed: the model has no batch norm with a scale between layers that are understood"
        )
    left = {layer: len({channels.root(x) for x in labels}) for layer, labels in channels.outputs.items()}
    layers_of: dict[int, list[nn.Module]] = {}
    for layer, labels in channels.outputs.items():
        for root in {channels.root(label) for label in labels}:
            layers_of.setdefault(root, []).append(layer)
    removed: set[int] = set()
    for root in candidates:
        if len(removed) >= int(ratio * len(candidates)):
            break
        if all(left[layer] > 1 for layer in layers_of[root]):
            removed.add(root)
            for layer in layers_of[root]:
                left[layer] -= 1
    return removed


def _shrink(layer: Any, channels: Channels, removed: set[int]) -> None:
    taken, returned = (kept(of[layer], channels, removed) for of in (channels.inputs, channels.outputs))
    if len(taken) == len(channels.inputs[layer]) and len(returned) == len(channels.outputs[layer]):
        return
    if is_prunable_norm(layer):
        _shrink_norm(layer, taken)
        return
    weight = layer.weight.detach()[returned]
    if is_depthwise(layer):
        layer.groups = len(returned)
    else:
        weight = weight[:, taken]
    layer.weight = nn.Parameter(weight.clone(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[returned].clone(), requires_grad=layer.bias.requires_grad)
    names = ("in_channels", "out_channels") if isinstance(layer, CONVOLUTIONS) else ("in_features", "out_features")
    setattr(layer, names[0], len(taken))
    setattr(layer, names[1], len(returned))


def _shrink_norm(layer: Any, taken: Tensor) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(parameter.detach()[taken].clone(), requires_grad=parameter.requires_grad))
    for name, buffer in buffers_of(layer).items():
        if buffer.dim() == 1:
            setattr(layer, name, buffer[taken].clone())
    layer.num_features = len(taken)
    if clear_window := getattr(layer, "clear_window", None):  # cross-iteration norms: moments of all channels
        clear_window()
    if (original := layer.__dict__.get("converted_from")) is not None:  # what `syncbn.revert` puts back
        _shrink_norm(original, taken)
