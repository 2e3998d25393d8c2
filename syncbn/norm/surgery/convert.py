"""Replacing the normalization layers of a finished model, and restoring them, without loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.attachable import Attachable
from syncbn.norm.core.registry import norm_layer, norm_options
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.surgery.adapters import adapter_for, looks_like_batch_norm
from syncbn.norm.surgery.feeding import attach_norms
from syncbn.norm.surgery.fusible import activations_after
from syncbn.norm.surgery.select import select_layers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Key of the original layer in the new one's `__dict__`; a submodule would appear in `state_dict`.
_ORIGINAL = "converted_from"


def convert(
    model: nn.Module,
    name: str,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    process_group: ProcessGroup | None = None,
    example_input: Tensor | None = None,
    **options: Any,
) -> nn.Module:
    """Replace the batch normalization layers of `model` by the norm `name`, in place.

    The new layers take over the old ones' `Parameter` objects (existing optimizers keep working), buffers, hooks, eps,
    momentum, `training` and all other options that both have. A shared module stays shared. `revert` undoes it.

    It converts torch's BatchNorm1d/2d/3d and SyncBatchNorm, this package's batch norms, timm's BatchNormAct2d (which
    keeps its activation) and the FrozenBatchNorm2d of torchvision and detectron2. The last become trainable: name them
    in `exclude` to keep them frozen.

    With `fuse_activation=True`, an option of "sync", a layer is fused with the ReLU or LeakyReLU after it, and with the
    sum with a shortcut between them, where `syncbn.norm.surgery.fusible.activations_after` finds it safe. That function
    also gives the reasons for the others, which are converted without fusion. Activation modules stay in the model.

    Args:
        model: a model not yet wrapped by DDP or FSDP, nor compiled.
        name: one of `syncbn.available_norms()`.
        include: globs of module names, as in `model.named_modules()`: "layer4.*", "*.downsample.1". All when None.
        exclude: globs of module names that aren't converted.
        process_group: the ranks to synchronize over, for norms that do.
        example_input: an input of the model, for norms that act on the convolution before them (see
            `syncbn.norm.surgery.feeding.attach_norms`) and for `fuse_activation`, where the model can't be traced.
        options: further arguments of the layer, which override those taken from the old one.

    Returns:
        `model`, or the new layer where `model` is itself a normalization layer.

    Raises:
        ValueError: an unknown norm or option; a glob that matches no normalization layer; a model that is wrapped or
            compiled; a lazy layer without its shape; a subclass of batch norm whose own `forward` would be lost; a norm
            that acts on the convolution before it, where there is none; `memory="invert"` with a layer before a ReLU.
    """
    _refuse_wrapped(model)
    if process_group is not None:
        options["process_group"] = process_group
    norm_layer(name, **options)  # refuse an unknown norm or option before any change
    layers = select_layers(model, _is_convertible, include, exclude)
    unfused = _without_fusion(model, layers, options, example_input)
    new = {}
    for path, module in layers:
        try:
            new[module] = _converted(_reverted(module), name, unfused.get(module, options))
        except ValueError as error:
            raise ValueError(f"can't convert {path or 'the model'} to {name!r}: {error}") from error
    converted = _replace(model, new)
    try:
        attach_norms(converted, example_input)
    except ValueError:
        for layer in new.values():
            if isinstance(layer, Attachable):
                layer.detach()
        _replace(converted, {layer: old for old, layer in new.items()})
        raise
    return converted


def revert(model: nn.Module) -> nn.Module:
    """Restore the layers that `convert` replaced, with their current parameters and statistics.

    Args:
        model: a model not wrapped by DDP or FSDP, nor compiled. Layers that were never converted stay.

    Returns:
        `model`, or the original layer where `model` is itself a converted layer.

    Raises:
        ValueError: the model is wrapped or compiled.
    """
    _refuse_wrapped(model)
    return _replace(model, {module: _reverted(module) for module in model.modules() if _ORIGINAL in module.__dict__})


def _without_fusion(
    model: nn.Module, layers: list[tuple[str, nn.Module]], options: dict[str, Any], example_input: Tensor | None
) -> dict[nn.Module, dict[str, Any]]:
    """Options of the layers that can't be fused with an activation, if fusion was requested."""
    if not options.get("fuse_activation"):
        return {}
    after = activations_after(model, [layer for _, layer in layers], example_input)
    relus = [path for path, layer in layers if after[layer] == 0]
    if relus and options.get("memory") == "invert":
        raise ValueError(
            f'memory="invert" needs a LeakyReLU after each layer, and a ReLU comes after {", ".join(relus)}: leave '
            'them out with exclude=, or use memory="recompute"'
        )
    plain = {key: value for key, value in options.items() if key not in ("fuse_activation", "memory")}
    return {layer: plain for layer, found in after.items() if isinstance(found, str)}


def _converted(old: nn.Module, name: str, options: dict[str, Any]) -> nn.Module:
    adapter = adapter_for(old)
    assert adapter is not None, "only layers that look like batch norms are selected"
    arguments = adapter.arguments(old)
    num_features = arguments.pop("num_features")
    if options.get("keras_momentum") is not None:
        del arguments["momentum"]
    shared = {key: value for key, value in arguments.items() if key in norm_options(name)}
    new = norm_layer(name, **(shared | options))(num_features)
    some_tensor = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    if some_tensor is not None:
        new.to(some_tensor.device, some_tensor.dtype)
    _hand_over(old, new)
    if isinstance(new, TrackingNorm):
        new.adopt(old)
    adapter.finish(new, old)
    new.__dict__[_ORIGINAL] = old
    return new


def _reverted(module: nn.Module) -> nn.Module:
    """Original of a converted layer, updated; any other module unchanged."""
    old = module.__dict__.get(_ORIGINAL)
    if old is None:
        return module
    _hand_over(module, old)
    return old


def _hand_over(source: nn.Module, target: nn.Module) -> None:
    """Transfer the tensors that both layers have, the hooks and the mode from `source` to `target`."""
    for key, parameter in source._parameters.items():
        if key in target._buffers and parameter is not None:  # to a frozen layer, whose buffers no optimizer updates
            target._buffers[key] = parameter.detach().clone()
        elif key in target._parameters:
            target._parameters[key] = parameter
    for key, buffer in source._buffers.items():
        known = target._parameters.get(key)
        if buffer is None:
            continue
        mine = target._buffers.get(key)
        if mine is not None and mine.shape == buffer.shape:  # a recurrent norm has a row for each time step
            target._buffers[key] = buffer
        elif known is not None:  # from a frozen layer; the same Parameter, for an optimizer that holds it
            known.data = buffer.clone()
    if isinstance(source, Attachable):
        source.detach()
    compat.share_hooks(source, target)
    target.training = source.training


def _is_convertible(module: nn.Module) -> bool:
    return _ORIGINAL in module.__dict__ or looks_like_batch_norm(module)


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        if compat.is_compiled(module):
            raise ValueError("the model is compiled already; convert first: torch.compile(syncbn.convert(model, ...))")
        for cls in type(module).__mro__:
            wrapper = compat.WRAPPERS.get(cls.__name__)
            if wrapper is not None and cls.__module__.startswith("torch."):
                raise ValueError(f"the model is wrapped by {cls.__name__} already; convert first: {wrapper}")
