"""A pruned network equals the original with masks before its weights, and the original with removed scales of 0."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from tests.networks.generate import Description, build
from tests.networks.oracles.compare import (
    WrongError,
    check_unchanged,
    check_usable,
    example,
    is_copyable,
    run,
    same_results,
    snapshot,
)
from tests.networks.oracles.verdict import Facts, policy
from tests.networks.spec import Spec

RATIOS = (0.2, 0.5, 0.9)
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def judge_prune(spec: Spec) -> Facts:
    """Prune a network, find the removed channels by the parameters' values, and compare with two originals.

    - the original in which only γ and β of the removed channels are set to 0;
    - the original with a 0/1 mask right before each weight that lost input columns. Constants folded into biases are
      copied, since a mask removes them.
    """
    network, reference, masked = build(spec), build(spec).model.eval(), build(spec).model.eval()
    model, description = network.model, network.description
    for each in (model, reference, masked):
        tell_scales_apart(each)
    copyable, before = is_copyable(model), snapshot(model)
    ratio = RATIOS[spec.seed % len(RATIOS)]
    with policy():
        pruned = syncbn.prune(model, ratio, example(network))
    check_unchanged(model, before)
    pruned.eval()
    _check_ties(reference, pruned)
    removed = zero_removed(reference, pruned)
    same_results(pruned, reference, description, "pruned and original with γ = β = 0")
    if _mask(masked, pruned, description):
        same_results(pruned, masked, description, "pruned and original with masks")
    check_sizes(pruned)
    check_usable(copy.deepcopy(pruned) if copyable else pruned, description, copyable, train=True)
    removable = set(description.removable) if ratio == max(RATIOS) else set()
    return Facts(len(removable), len(removable & removed))


def tell_scales_apart(model: nn.Module) -> None:
    """Make all scales different, also those of new layers."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if _is_batch_norm(layer) and isinstance(layer.weight, Tensor):
            factors = 1 + 1e-3 * torch.rand(layer.weight.shape, generator=generator, dtype=torch.float64)
            layer.weight.data.mul_(factors).add_((layer.weight.data == 0) * 1e-3 * factors)


def _check_ties(original: nn.Module, pruned: nn.Module) -> None:
    """Raise unless tied parameters are still tied."""
    if _ties(original) != _ties(pruned):
        raise WrongError("parameters that were tied aren't any more, or others are")


def _ties(model: nn.Module) -> set[frozenset[str]]:
    names: dict[Any, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def zero_removed(reference: nn.Module, pruned: nn.Module) -> set[str]:
    """Set γ and β of removed channels to 0; returns the names of their norms."""
    removed = set()
    for name, layer in reference.named_modules():
        weight = getattr(layer, "weight", None)
        if not _is_batch_norm(layer) or not isinstance(weight, Tensor):
            continue
        small = pruned.get_submodule(name).weight
        if small.shape == weight.shape:
            continue
        kept = _places(small.detach(), weight.detach())
        if kept is None:
            raise WrongError(f"the scales of {name} aren't some of the original's")
        gone = torch.ones(len(weight), dtype=torch.bool)
        gone[kept] = False
        removed.add(name)
        for tensor in (layer.weight, layer.bias):
            if isinstance(tensor, Tensor):
                tensor.data[gone] = 0
    return removed


def _is_batch_norm(layer: nn.Module) -> bool:
    """Whether a layer has relevant γ and β, with or without running statistics."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) or isinstance(
        getattr(layer, "running_mean", None), Tensor
    )


def _places(small: Tensor, large: Tensor) -> Tensor | None:
    """Index of each value of `small` in `large`, both flattened; None if one is missing."""
    values, order = large.flatten().sort()
    places = torch.searchsorted(values, small.flatten().contiguous()).clamp(max=len(values) - 1)
    return order[places] if torch.equal(values[places], small.flatten()) else None


def _mask(masked: nn.Module, pruned: nn.Module, description: Description) -> bool:
    """Put masks before the layers that lost inputs. False if the weights' values don't identify them."""
    called: set[str] = set()
    masks: dict[str, Tensor] = {}
    if _loses_bare_columns(masked, pruned):
        return False
    for name, layer in masked.named_modules():
        if not isinstance(layer, _WEIGHTED):
            continue
        small = pruned.get_submodule(name)
        if small.weight.shape == layer.weight.shape:
            continue
        found = kept(small, layer)
        if found is None or _is_tied(masked, layer):
            return False
        inputs, outputs = found
        masks[name] = inputs
        _take_bias(small, layer, outputs)

        def multiply(layer: nn.Module, args: Any, name: str = name) -> Any:
            called.add(name)
            along = (-1,) if isinstance(layer, nn.Linear) else (-1, *(1 for _ in args[0].shape[2:]))
            return (args[0] * masks[name].view(along), *args[1:])

        layer.register_forward_pre_hook(multiply)
    run(masked, description.arguments(1))
    return called == masks.keys()  # a weight that isn't used by its layer's call can't be masked this way


def _loses_bare_columns(original: nn.Module, pruned: nn.Module) -> bool:
    """Whether a matrix outside a layer has shrunk; where it is read is unknown."""
    smaller = {name: parameter.shape for name, parameter in pruned.named_parameters()}
    for name, parameter in original.named_parameters():
        layer = original.get_submodule(name.rpartition(".")[0])
        if parameter.dim() > 1 and parameter.shape != smaller[name] and not isinstance(layer, _WEIGHTED):
            return True
    return False


def kept(small: Any, layer: Any) -> tuple[Tensor, Tensor] | None:
    """Mask of a smaller layer's inputs, and indices of its outputs, by its weight's values."""
    large = layer.weight.detach()
    places = _places(small.weight.detach(), large)
    if places is None or not bool((small.weight != 0).all()):  # zeros, from a mask, can't be located
        return None
    first, second = large.shape[:2]
    kernel = large[0, 0].numel()
    rows = (places // (second * kernel)).view(small.weight.shape)
    columns = (places // kernel % second).view(small.weight.shape)
    groups = getattr(layer, "groups", 1)
    transposed = getattr(layer, "transposed", False)
    if transposed:  # (inputs, outputs / groups, ...)
        inputs, outputs = rows, rows // (first // groups) * second + columns
    else:  # (outputs, inputs / groups, ...)
        inputs, outputs = rows // (first // groups) * second + columns, rows
    mask = torch.zeros(first if transposed else second * groups, dtype=torch.float64)
    mask[inputs.flatten()] = 1
    if not transposed:
        return mask, outputs.flatten(1)[:, 0]
    order = outputs.unflatten(0, (small.groups, -1))[:, 0].flatten(2)[..., 0].flatten()
    return mask, order


def _take_bias(small: Any, layer: Any, outputs: Tensor) -> None:
    if small.bias is not None:
        bias = torch.zeros(_width(layer), dtype=torch.float64) if layer.bias is None else layer.bias.detach().clone()
        bias[outputs] = small.bias.detach()
        layer.bias = nn.Parameter(bias)


def _width(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _is_tied(model: nn.Module, layer: Any) -> bool:
    return sum(p is layer.weight for _, p in model.named_parameters(remove_duplicate=False)) > 1


def check_sizes(pruned: nn.Module) -> None:
    """Raise unless layers' sizes match their weights."""
    for name, layer in pruned.named_modules():
        if isinstance(layer, nn.Linear):
            said, seen = (layer.out_features, layer.in_features), tuple(layer.weight.shape)
        elif isinstance(layer, nn.modules.conv._ConvNd):
            said = (layer.out_channels, layer.in_channels // layer.groups)
            seen = tuple(layer.weight.shape[:2])
            if layer.transposed:
                said = (layer.in_channels, layer.out_channels // layer.groups)
        elif isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None:
            said, seen = (layer.num_features,), tuple(layer.running_mean.shape)
        else:
            continue
        if said != seen:
            raise WrongError(f"{name or 'the model'} says that it has the sizes {said}, and has {seen}")
