"""Freezing of batch normalization layers while the rest of a network trains."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import tracks_batch
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.select import Globs, globs, select_layers
from syncbn.policy.acting import Acting, acting_on, others_on
from syncbn.policy.layers import affine_of, has_statistics, is_batch_norm, is_norm, refuse_uncalled


def freeze(
    model: nn.Module, *, stats: bool = True, affine: bool = False, include: Globs = None, exclude: Globs = None
) -> nn.Module:
    """Freeze running statistics, scales and shifts of normalization layers, in place; `unfreeze` undoes it.

    A layer with frozen statistics normalizes by running_mean and running_var in training too, doesn't update them, and
    doesn't communicate: y = γ·(x - running_mean) / sqrt(running_var + eps) + β, and dx = γ·dy / sqrt(running_var +
    eps). This also holds after `model.train()`, in copies of the model, and after `syncbn.convert` or `revert`. Frozen
    γ and β have no gradient, so optimizers don't change them, weight decay included. Checkpoints have the same keys as
    before and don't store whether a layer is frozen. Hooks do it, so a call of `layer.forward(x)`, which no hook sees,
    still trains the statistics; `state_dict` then warns of it.

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
            one that `adapt` told to normalize by the batch, or one in a scripted, traced or exported model.
    """
    check_given(locals())
    include, exclude = globs(include), globs(exclude)  # a generator is used up by the first selection
    if stats:
        layers = _selected(model, is_batch_norm, include, exclude)
        refuse_uncalled(model, layers, "freeze")
        for path, layer in layers:
            if not has_statistics(layer):
                raise ValueError(
                    f"{path or 'the layer'} has no running statistics to freeze (track_running_stats=False): leave it "
                    "out with exclude=, or build it with track_running_stats=True and recalibrate it first"
                )
            for other in others_on(layer, _Frozen):
                raise ValueError(
                    f"{path or 'the layer'} normalizes by the batch it gets (syncbn.adapt, or use_batch_statistics): "
                    f"{other.undone_by} first"
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
    check_given(locals())
    for _, layer in select_layers(model, is_norm, include, exclude):
        hook = _find(layer)
        if hook is not None:
            hook.unfreeze(layer, stats, affine)
    return model


def has_frozen_statistics(layer: nn.Module) -> bool:
    """Whether a layer's running statistics are frozen by `freeze`."""
    hook = _find(layer)
    return hook is not None and hook.stats


def has_moving_statistics(layer: nn.Module) -> bool:
    """Whether a layer's running statistics follow the training."""
    return tracks_batch(layer) and not has_frozen_statistics(layer)


def settle_frozen(model: nn.Module) -> None:
    """Make the buffers of frozen layers what the layers would evaluate with, and take others' sizes for theirs."""
    for layer in model.modules():
        hook = _find(layer)
        if hook is not None and hook.stats:
            hook.undo_reset(layer)


def is_frozen_by(hook: Any) -> bool:
    """Whether a layer's hook is one that `freeze` left."""
    return isinstance(getattr(hook, "__self__", None), _Frozen)


class _Frozen(Acting):
    """Frozen state of a layer, as hooks.

    The layer's `training` is as the user set it, except while the layer runs. A reset of the statistics to 0 and 1, as
    by `torch.optim.swa_utils.update_bn` and Lightning's weight averaging, which expect to recalibrate them in training,
    is undone before the layer runs or is saved. Other values, such as a checkpoint's, become the frozen ones.
    """

    undone_by = "syncbn.unfreeze(model)"

    def __init__(self, layer: nn.Module) -> None:
        self.stats = False
        self.requires_grad: dict[str, bool] = {}  # original values of frozen parameters
        self._training = layer.training
        self._values: list[Tensor] = []  # frozen statistics
        self._seen: list[tuple[Tensor, int]] = []  # buffers with these values, and their versions
        self._trained: int | None = None  # number of batches when the statistics were frozen
        super().__init__(layer)
        self._handles += [
            layer.register_state_dict_pre_hook(self.before_saving),
            layer.register_load_state_dict_post_hook(self.after_loading),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, in which only changed buffers are checked again."""
        seen = self._seen if self._as_seen([buffer for buffer, _ in self._seen]) else []
        return {**vars(self), "_seen": seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"_values": [], "_seen": [], "_trained": None} | state)  # of version 0.1, it has none of them
        self._seen = [(buffer, compat.version_of(buffer)) for buffer, _ in self._seen]

    def before_forward(self, layer: nn.Module, args: Any) -> None:
        self._training = layer.training
        if self.stats:
            if not (torch.compiler.is_compiling() or compat.in_dispatch_mode()):  # these see every operation
                self.undo_reset(layer)
            layer.training = False

    def after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:
        layer.training = self._training

    def before_saving(self, layer: nn.Module, prefix: str, keep_vars: bool) -> None:
        """Before `state_dict`."""
        if self.stats:
            self.undo_reset(layer)
            before, self._trained = self._trained, _batches_of(layer)
            if before is not None and self._trained is not None and self._trained > before:
                warnings.warn(
                    f"{prefix.removesuffix('.') or 'the layer'} is frozen, but its running statistics were trained: "
                    "something calls its forward method, which no hook sees. Call the layer, layer(x)",
                    stacklevel=2,
                )

    def after_loading(self, layer: nn.Module, incompatible_keys: Any) -> None:
        """After `load_state_dict`."""
        if self.stats:
            self.freeze_statistics(layer)

    def freeze_statistics(self, layer: nn.Module) -> None:
        self.stats = True
        self._values = []
        self._trained = _batches_of(layer)
        self.undo_reset(layer)

    @torch.no_grad()
    def undo_reset(self, layer: Any) -> None:
        """Take the buffers for the frozen statistics, unless they were reset to 0 and 1 since the last time."""
        buffers = [layer.running_mean, layer.running_var]
        if any(buffer is None or buffer.is_meta for buffer in buffers) or self._as_seen(buffers):
            return
        if [value.shape for value in self._values] == [buffer.shape for buffer in buffers]:  # not of pruned layers
            mean, var = buffers
            was_reset = (mean == 0).all() & (var == 1).all()  # without waiting for a GPU
            for buffer, value in zip(buffers, self._values, strict=True):
                buffer.copy_(torch.where(was_reset, value.to(buffer), buffer))
        self._values = [buffer.detach().clone() for buffer in buffers]
        self._seen = [(buffer, compat.version_of(buffer)) for buffer in buffers]

    def _as_seen(self, buffers: list[Tensor]) -> bool:
        return len(self._seen) == len(buffers) and all(
            seen is buffer and version == compat.version_of(buffer)
            for (seen, version), buffer in zip(self._seen, buffers, strict=True)
        )

    def freeze_affine(self, layer: nn.Module) -> None:
        for name, parameter in affine_of(layer).items():
            self.requires_grad.setdefault(name, parameter.requires_grad)
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer would still apply it

    def unfreeze(self, layer: nn.Module, stats: bool, affine: bool) -> None:
        if stats:
            self.stats = False
        if affine:
            for name, parameter in affine_of(layer).items():
                if name in self.requires_grad:
                    parameter.requires_grad_(self.requires_grad.pop(name))
        if not self.stats and not self.requires_grad:
            self.remove()


def _batches_of(layer: nn.Module) -> int | None:
    count = getattr(layer, "num_batches_tracked", None)
    return None if not isinstance(count, Tensor) or count.is_meta else int(count)


def _frozen(layer: nn.Module) -> _Frozen:
    return _find(layer) or _Frozen(layer)


def _find(layer: nn.Module) -> _Frozen | None:
    return acting_on(layer, _Frozen)


def _selected(model: nn.Module, is_layer: Any, include: Globs, exclude: Globs) -> list[tuple[str, nn.Module]]:
    layers = select_layers(model, is_layer, include, exclude)
    if not layers:
        raise ValueError("the model has no such normalization layer to freeze")
    return layers
