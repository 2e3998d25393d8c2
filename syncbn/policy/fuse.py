"""Batch normalization folded into the convolution before it, for inference."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncbn.norm.core.attachable import FEEDERS
from syncbn.norm.surgery.trace import Example, ModuleCall, Trace, trace
from syncbn.policy.layers import has_statistics, is_batch_norm

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Fusion:
    """What becomes of one batch normalization layer.

    Attributes:
        layer: its name in the model.
        feeder: the name of the convolution or linear layer that takes it in; None where there is none.
        reason: why it can't be folded; None where it can.
    """

    layer: str
    feeder: str | None
    reason: str | None


def fuse(model: nn.Module, example_input: Example) -> nn.Module:
    """A copy of `model` in eval mode, whose batch norms are part of the convolutions and linear layers before them.

    With y = W∗x + b and s = γ / sqrt(running_var + eps), per output channel,

        γ·(y - running_mean) / sqrt(running_var + eps) + β  =  (s·W)∗x + s·(b - running_mean) + β

    computed in float64. Layers are found by one forward pass. One is folded if its input is the output of one
    convolution (transposed and grouped ones too) or linear layer, used nowhere else, both are called once, and its
    evaluation is the formula above. The others stay; a warning lists them with the reasons, and so does `plan_fusion`.
    `torch.nn.Identity` stands for the folded layers, so names of the others don't change.

    Args:
        model: any model with batch normalization layers of torch or of this package; it isn't changed.
        example_input: the model's argument, or a tuple of its arguments, for the forward pass.

    Returns:
        A new model for evaluation; training it further would be training another network.

    Source: Markuš, Fusing batch normalization and convolution in runtime, 2018,
    https://nenadmarkus.com/p/fusing-batchnorm-and-conv/.
    """
    fused = copy.deepcopy(model).eval()
    plan = plan_fusion(fused, example_input)
    modules = dict(fused.named_modules(remove_duplicate=False))
    for fusion in plan:
        if fusion.feeder is not None:
            layer = modules[fusion.layer]
            if hasattr(layer, "without_feeder"):  # cross-iteration norms have a hook on their convolution
                layer.without_feeder("folded into it")
            _fold(modules[fusion.feeder], layer)
            for path in [path for path, module in modules.items() if module is layer]:
                fused.set_submodule(path, nn.Identity())
    left = [f"{fusion.layer or 'the model'}: {fusion.reason}" for fusion in plan if fusion.reason]
    if left:
        warnings.warn(f"{len(left)} of {len(plan)} batch norms can't be folded: {'; '.join(left)}", stacklevel=2)
    return fused


def plan_fusion(model: nn.Module, example_input: Example) -> list[Fusion]:
    """What `fuse` would do with each batch normalization layer of `model`, in the order of the modules."""
    seen = trace(model, example_input)
    names = {module: name for name, module in model.named_modules()}
    plan = []
    for name, layer in model.named_modules():
        if is_batch_norm(layer):
            found = _feeder(layer, seen)
            if isinstance(found, str):
                plan.append(Fusion(name, None, found))
            else:
                plan.append(Fusion(name, names[found], None))
    return plan


def _feeder(layer: nn.Module, seen: Trace) -> nn.Module | str:
    """The layer to fold into, or the reason why there is none."""
    calls = seen.calls_of(layer)
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward pass"
    (call,) = calls
    if not has_statistics(layer):
        return "it has no running statistics, and normalizes by the batch"
    if not _is_affine_map(layer, call):
        return f"the evaluation of {type(layer).__name__} isn't γ·(x - running_mean) / sqrt(running_var + eps) + β"
    feeder = seen.source_of(call.input, FEEDERS)
    if feeder is None:
        return "its input isn't the output of a convolution or linear layer"
    if len(seen.calls_of(feeder)) != 1:
        return f"the {type(feeder).__name__} before it is called {len(seen.calls_of(feeder))} times in a forward pass"
    if isinstance(feeder, nn.Linear) and call.input.dim() != 2:
        return "it normalizes another dimension than the features of the linear layer before it"
    if seen.is_used_outside(call.input, layer):
        return f"the output of the {type(feeder).__name__} before it is used elsewhere too"
    if parametrize.is_parametrized(feeder):
        return (
            f"the {type(feeder).__name__} before it is parametrized: torch.nn.utils.parametrize.remove_parametrizations"
        )
    assert isinstance(feeder.weight, Tensor)
    if seen.is_used_outside(feeder.weight, feeder):
        return f"the weight of the {type(feeder).__name__} before it is used elsewhere too"
    return feeder


def _is_affine_map(layer: Any, call: ModuleCall) -> bool:
    """Whether the layer did to its input what folding would: it may be of another kind, or have hooks."""
    scale, shift = _scale_and_shift(layer)
    if scale.dim() != 1 or call.input.dim() < 2 or call.input.shape[1] != len(scale):
        return False
    along = (1, -1, *(1 for _ in call.input.shape[2:]))
    expected = call.input.double() * scale.view(along) + shift.view(along)
    largest = expected.abs().max() + (layer.running_mean.double() * scale).abs().max() + 1
    rounding = 64 * torch.finfo(call.output.dtype).eps * largest
    return bool((call.output.double() - expected).abs().max() <= rounding)


def _scale_and_shift(layer: Any) -> tuple[Tensor, Tensor]:
    """s and t of y = s·x + t, (C) float64."""
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.double()
    shift = -layer.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    return scale.detach(), shift.detach()


def _fold(feeder: Any, layer: nn.Module) -> None:
    scale, shift = _scale_and_shift(layer)
    weight = feeder.weight.detach().double()
    if isinstance(feeder, _TRANSPOSED):  # (C_in, C_out / groups, *kernel)
        by_group = weight.unflatten(0, (feeder.groups, -1))
        factors = scale.view(feeder.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        weight = (by_group * factors).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
    bias = shift if feeder.bias is None else feeder.bias.detach().double() * scale + shift
    dtype = feeder.weight.dtype
    feeder.weight = nn.Parameter(weight.to(dtype), requires_grad=feeder.weight.requires_grad)
    feeder.bias = nn.Parameter(bias.to(dtype), requires_grad=feeder.weight.requires_grad)
