"""Freezing of batch normalization layers while the rest of a network trains."""

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from syncbn.norm.core import compat
from syncbn.norm.surgery.select import Globs, select_layers
from syncbn.policy.layers import has_statistics, is_batch_norm, is_norm


def freeze(
    model: nn.Module, *, stats: bool = True, affine: bool = False, include: Globs = None, exclude: Globs = None
) -> nn.Module:
    """Freeze running statistics, scales and shifts of normalization layers, in place; `unfreeze` undoes it.

    A layer with frozen statistics normalizes by running_mean and running_var in training too, doesn't update them, and
    doesn't communicate: y = γ·(x - running_mean) / sqrt(running_var + eps) + β, and dx = γ·dy / sqrt(running_var +
    eps). This also holds after `model.train()`, in copies of the model, and after `syncbn.convert` or `revert`. Frozen
    γ and β have no gradient, so optimizers don't change them, weight decay included. Checkpoints have the same keys as
    before and don't store whether a layer is frozen.

    Args:
        model: any model with batch normalization layers of torch or of this package, in 1d to 3d. Freeze γ and β before
            DDP wraps it: DDP waits for gradients of all parameters that were trainable then.
        stats: freeze the running statistics.
        affine: freeze γ and β, also of other normalization layers, such as group norm.
        include: globs of module names, as in `model.named_modules()`: "layer4.*", "*.downsample.1". All when None.
        exclude: globs of module names to leave unchanged.

    Returns:
        `model`.

    Raises:
        ValueError: a glob that matches no normalization layer; no layer to freeze; a layer without running statistics,
            which would continue to normalize by the batch.
    """
    if stats:
        layers = _selected(model, is_batch_norm, include, exclude)
        for path, layer in layers:
            if not has_statistics(layer):
                raise ValueError(
                    f"{path or 'the layer'} has no running statistics to freeze (track_running_stats=False): leave it "
                    "out with exclude=, or build it with track_running_stats=True and recalibrate it first"
                )
        for _, layer in layers:
            _frozen(layer).freeze_statistics(layer)
    if affine:
        for _, layer in _selected(model, is_norm, include, exclude):
            _frozen(layer).freeze_affine(layer)
    return model


def unfreeze(
    model: nn.Module, *, stats: bool = True, affine: bool = True, include: Globs = None, exclude: Globs = None
) -> nn.Module:
    """Undo `freeze`, in place; only parameters that were trainable before become trainable again.

    Args:
        model: a model with layers frozen by `freeze`; other layers aren't changed.
        stats: unfreeze the running statistics.
        affine: restore the `requires_grad` of γ and β.
        include: globs of module names. All when None.
        exclude: globs of module names to leave frozen.

    Returns:
        `model`.

    Raises:
        ValueError: a glob that matches no normalization layer.
    """
    for _, layer in select_layers(model, is_norm, include, exclude):
        hook = _find(layer)
        if hook is not None:
            hook.unfreeze(layer, stats, affine)
    return model


def has_frozen_statistics(layer: nn.Module) -> bool:
    """Whether a layer's running statistics are frozen by `freeze`."""
    hook = _find(layer)
    return hook is not None and hook.stats


class _Frozen:
    """Frozen state of a layer, as a pair of hooks, which follow the layer's hooks to copies and conversions.

    The layer's `training` is as the user set it, except while the layer runs.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.stats = False
        self.requires_grad: dict[str, bool] = {}  # original values of frozen parameters
        self._training = layer.training
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self.before_forward),
            layer.register_forward_hook(self.after_forward, always_call=True),
        ]

    def before_forward(self, layer: nn.Module, args: Any) -> None:
        self._training = layer.training
        if self.stats:
            layer.training = False

    def after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:
        layer.training = self._training

    def freeze_statistics(self, layer: nn.Module) -> None:
        self.stats = True

    def freeze_affine(self, layer: nn.Module) -> None:
        for name, parameter in layer.named_parameters(recurse=False):
            self.requires_grad.setdefault(name, parameter.requires_grad)
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer would still apply it

    def unfreeze(self, layer: nn.Module, stats: bool, affine: bool) -> None:
        if stats:
            self.stats = False
        if affine:
            for name, parameter in layer.named_parameters(recurse=False):
                if name in self.requires_grad:
                    parameter.requires_grad_(self.requires_grad.pop(name))
        if not self.stats and not self.requires_grad:
            for handle in self._handles:
                handle.remove()


def _frozen(layer: nn.Module) -> _Frozen:
    return _find(layer) or _Frozen(layer)


def _find(layer: nn.Module) -> _Frozen | None:
    owners = (getattr(hook, "__self__", None) for hook in compat.forward_pre_hooks(layer))
    return next((owner for owner in owners if isinstance(owner, _Frozen)), None)


def _selected(model: nn.Module, is_layer: Any, include: Globs, exclude: Globs) -> list[tuple[str, nn.Module]]:
    layers = select_layers(model, is_layer, include, exclude)
    if not layers:
        raise ValueError("the model has no such normalization layer to freeze")
    return layers
