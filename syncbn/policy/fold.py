"""Folding of a batch norm into the preceding layer, and the remainder of the norm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core.linear_maps import is_transposed
from syncbn.norm.surgery.forward import copied
from syncbn.norm.surgery.graph import View

Rest = Callable[[nn.Module], nn.Module]

# Activations that a norm may include; recognized on random numbers.
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.Mish, nn.SELU, nn.Tanh, nn.Sigmoid)


def scale_and_shift(layer: Any) -> tuple[Tensor, Tensor]:
    """Scale s and shift t of y = s·x + t, (C) float64."""
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.double()
    shift = -layer.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    return scale.detach(), shift.detach()


def folded(feeder: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of `feeder` with the norm folded in, computed in float64."""
    scale, shift = scale_and_shift(layer)
    weight = feeder.weight.detach().double()
    if is_transposed(feeder):  # (C_in, C_out / groups, *kernel)
        by_group = weight.unflatten(0, (feeder.groups, -1))
        factors = scale.view(feeder.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        weight = (by_group * factors).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
    bias = shift if feeder.bias is None else feeder.bias.detach().double() * scale + shift
    return weight.to(feeder.weight.dtype), bias.to(feeder.weight.dtype)


def fold(feeder: Any, layer: nn.Module) -> None:
    """Fold the norm into the weight and bias of `feeder`."""
    weight, bias = folded(feeder, layer)
    requires_grad = feeder.weight.requires_grad
    feeder.weight = nn.Parameter(weight, requires_grad=requires_grad)
    feeder.bias = nn.Parameter(bias, requires_grad=requires_grad)


def takes_bias(feeder: nn.Module, inputs: tuple[View, ...]) -> bool:
    """Test whether a convolution without a bias, with a forward of its own, adds a bias if it gets one."""
    if len(inputs) != 1 or len(inputs[0].shape) < 2:
        return False
    probe: Any = copied(feeder).double().eval()
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(2, *inputs[0].shape[1:], generator=numbers, dtype=torch.float64, device="cpu").to(
        probe.weight.device
    )
    try:
        with torch.no_grad():
            before = probe(x)
            along = 1 if before.dim() > 2 else -1
            bias = torch.arange(1.0, before.shape[along] + 1, dtype=torch.float64, device=x.device)
            probe.bias = nn.Parameter(bias)
            difference = probe(x) - before - bias.view(-1, *(1 for _ in before.shape[2:]))
    except Exception:  # a foreign layer may raise anything
        return False
    return bool((difference.abs() < 1e-9 * (1 + before.abs().max())).all())


def remainder(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Rest, bool] | None:
    """What a norm does after γ·(x - running_mean) / sqrt(running_var + eps) + β; None if it has another formula.

    Determined by experiment, on values of many sizes and signs and with other γ, β and statistics, since a subclass may
    do anything. It is nothing, or the layer's own submodules, as in timm's BatchNormAct2d, or an activation.

    Args:
        layer: norm with running statistics.
        shape: shape of an input, (N, C, *).

    Returns:
        A function from a copy of `layer` to the module that replaces it after folding; and whether the formula holds in
        float64, or only in the layer's own precision, which it may cast to.
    """
    for dtype in (torch.float64, None):
        try:
            rest = _remainder(layer, shape, dtype)
        except Exception:  # a foreign layer may raise anything
            rest = None
        if rest is not None:
            return rest, dtype is not None
    return None


def _remainder(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None) -> Rest | None:
    probe: Any = copied(layer).to(dtype=dtype).eval()
    state = probe.running_mean
    if state.dim() != 1 or len(shape) < 2 or shape[1] != len(state):
        return None
    numbers = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=numbers, dtype=torch.float64, device="cpu")

    with torch.no_grad():
        probe.running_mean.copy_(noise(len(state)))
        probe.running_var.copy_(noise(len(state)).exp())
        size = (max(2, 64 // len(state)), len(state), *(min(n, 3) for n in shape[2:]))
        inputs = [noise(*size) * 10 ** (2 * noise(*size))]  # from hundredths to thousands, to detect clamps at 100, too
        # A layer may look at its numbers: as in evaluation, and so small and so large that its branches show.
        mean, std = (part.double().cpu().view(1, -1, *(1 for _ in shape[2:])) for part in _mean_and_std(probe))
        inputs += [mean + std * noise(*size) * factor for factor in (1.0, 1e-3, 1e3)]
        found: list[Rest] | None = None
        for x, shrunk in zip(inputs, (1.0, 1.0, 1e-3, 1.0), strict=True):
            for parameter in (probe.weight, probe.bias):
                if parameter is not None:
                    parameter.copy_((noise(len(state)) + 0.1) * (shrunk if parameter is probe.bias else 1.0))
            x = x.to(state.device, probe.weight.dtype if probe.weight is not None else state.dtype)
            y = probe(x.clone())
            scale, shift = (part.view(1, -1, *(1 for _ in shape[2:])) for part in scale_and_shift(probe))
            z = x.double() * scale + shift
            rounding = 64 * torch.finfo(y.dtype).eps * (x.double().abs() * scale.abs() + shift.abs() + 1)
            candidates = list(_candidates(y.double(), z)) if found is None else found
            found = [rest for rest in candidates if _is(rest(probe), z, y.double(), rounding)]
        return next(iter(found or ()), None)


def _mean_and_std(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean, (layer.running_var.double() + layer.eps).sqrt()


def _candidates(y: Tensor, z: Tensor) -> Iterator[Rest]:
    yield _nothing
    yield _children
    for kind in _ACTIVATIONS:
        yield _activation(kind)
    yield _activation(nn.GELU, "tanh")
    if (negative := z < -1).any():
        slope = float((y / z)[negative].median())
        yield _activation(nn.LeakyReLU, float(f"{slope:.6g}"))


def _nothing(layer: nn.Module) -> nn.Module:
    identity = nn.Identity()
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):  # the model may ask for them
        if not isinstance(value := getattr(layer, name, None), Tensor | None):
            setattr(identity, name, value)
    return identity


def _children(layer: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layer.named_children()))


def _activation(kind: Callable[..., nn.Module], *options: Any) -> Rest:
    return lambda layer: kind(*options)


def _is(rest: nn.Module, z: Tensor, y: Tensor, rounding: Tensor) -> bool:
    try:
        return bool(((copied(rest).double().eval()(z.clone()) - y).abs() <= rounding).all())
    except Exception:  # a foreign layer may raise anything
        return False


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another, also in Python lists and dictionaries of modules."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
        for name, value in list(vars(parent).items()):
            if not name.startswith("_") and isinstance(value, list | tuple | dict):
                vars(parent)[name] = _swapped(value, old, new)


def _swapped(value: Any, old: nn.Module, new: nn.Module) -> Any:
    if value is old:
        return new
    if isinstance(value, list):
        value[:] = [_swapped(item, old, new) for item in value]
    elif type(value) is tuple:
        return tuple(_swapped(item, old, new) for item in value)
    elif isinstance(value, dict):
        for key, item in value.items():
            value[key] = _swapped(item, old, new)
    return value
