"""Replacing the normalization layers of a finished model, and restoring them, without loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from syncbn.norm.core import compat
from syncbn.norm.core.attachable import Attachable
from syncbn.norm.core.registry import norm_layer, registered_layers
from syncbn.norm.surgery.adapters import looks_like_batch_norm
from syncbn.norm.surgery.exchanged import commit, converted, original_of, reverted, settle, withhold_group
from syncbn.norm.surgery.feeding import attach_norms
from syncbn.norm.surgery.forward import Example, Forward, has_values
from syncbn.norm.surgery.fusible import activations_after
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.held import OF_TORCH, calls_batch_norm, held, methods_that_ask, with_new
from syncbn.norm.surgery.overlap import overlap_messages
from syncbn.norm.surgery.plain import NAME as PLAIN_NAME
from syncbn.norm.surgery.plain import is_plain, plain_classes
from syncbn.norm.surgery.record import record
from syncbn.norm.surgery.select import select_layers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def convert(
    model: nn.Module,
    name: str,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    process_group: ProcessGroup | None = None,
    example_input: Example | None = None,
    forward: Forward | None = None,
    **options: Any,
) -> nn.Module:
    """Replace the batch normalization layers of `model` by the norm `name`, in place.

    The new layers take over the old ones' `Parameter` objects (existing optimizers keep working), buffers, process
    group, eps, momentum, `training` and all other options that both have; also hooks with the state they use (such as
    the masks of `torch.nn.utils.prune`), extra parameters and buffers, and attributes. Layers with methods of their
    own, or with observers, are refused, since a new layer would lose them. A shared module stays shared. `revert`
    undoes it. A new layer accepts inputs of as many dimensions as the layer it was converted from.

    It converts torch's BatchNorm1d/2d/3d and SyncBatchNorm, this package's batch norms, timm's BatchNormAct2d (which
    keeps its activation) and the FrozenBatchNorm2d of torchvision and detectron2. The last become trainable: name them
    in `exclude` to keep them frozen.

    "torch" stands for `torch.nn.BatchNorm1d`, `2d` or `3d`, which all of torch's tools support. Converted layers become
    their originals again. For others the class follows from the preceding convolution, pooling or linear layer, or from
    `example_input`. Layers that aren't batch normalization in evaluation mode are refused.

    With `fuse_activation=True`, an option of "sync", a layer is fused with the ReLU or LeakyReLU after it, and with the
    sum with a shortcut between them, where `syncbn.norm.surgery.fusible.activations_after` finds it safe. That function
    also gives the reasons for the others, which are converted without fusion. Activation modules stay in the model.

    With `overlap=True`, another option of "sync", the message of a layer's backward pass is sent while the weight
    gradients of the layers after it are computed: see `syncbn.norm.surgery.overlap.overlap_messages`.

    A reference to a layer follows it, in plain attributes, lists, dicts, tuples, methods and partials. A warning names
    what can't follow, such as a function that has the layer in its closure, and norms that are in the model but not
    registered, in plain lists, say. Other warnings say that there is nothing to convert, and name layers that
    `example_input` doesn't reach after the conversion, layers with eps=0, methods of the model that ask for torch's
    BatchNorm classes, such as a `train` that keeps them in evaluation mode, and what may be batch normalization that
    isn't converted: layers of other kinds with a running mean and variance, modules with a method that calls batch_norm
    on running statistics (unless `include` says which layers are meant), and graphs that call batch_norm by themselves,
    as exported models do.

    Args:
        model: a model not yet wrapped by DDP or FSDP, nor compiled.
        name: one of `syncbn.available_norms()`, or "torch".
        include: globs of module names, as in `model.named_modules()`: "layer4.*", "*.downsample.1". All when None.
        exclude: globs of module names that aren't converted.
        process_group: the ranks to synchronize over, for norms that do; each old layer's own when None.
        example_input: an input of the model, to see which layers it calls, for `overlap`, for norms that act on the
            convolution before them (see `syncbn.norm.surgery.feeding.attach_norms`), for `fuse_activation` and for
            "torch", where the model can't be traced. A tuple is the model's positional arguments, a dict its keywords.
        forward: how to call the model instead, `forward(model, example_input)`.
        options: further arguments of the layer, which override those taken from the old one.

    Returns:
        `model`, or the new layer where `model` is itself a normalization layer.

    Raises:
        ValueError: an unknown norm or option; a glob that matches no normalization layer; a model that is wrapped or
            compiled; a lazy layer without its shape; a subclass of batch norm whose own methods would be lost; a norm
            that acts on the convolution before it, where there is none; `memory="invert"` with a layer before a ReLU.
            All layers that can't be converted are named, and the model is as it was.
    """
    check_given(locals())
    _refuse_wrapped(model)
    if process_group is not None:
        options["process_group"] = process_group
    if name != PLAIN_NAME:
        norm_layer(name, **options)  # an unknown norm or option is refused before anything is touched
    elif options:
        raise ValueError(f"torch's own layers have no option {', '.join(options)}: leave it out")
    said = _warn_of_unknown(model) if include is None else 0
    layers = select_layers(model, _is_convertible, include, exclude)
    back: dict[nn.Module, nn.Module] = {}
    classes: dict[nn.Module, Any] = {}
    if name == PLAIN_NAME:
        back = {module: original_of(module) or module for _, module in layers}
        back = {module: old for module, old in back.items() if is_plain(old)}
        others = {module: path or "the layer" for path, module in layers if module not in back}
        classes = plain_classes(model, others, example_input, forward)
    unfused = _without_fusion(model, layers, options, example_input, forward)
    new: dict[nn.Module, nn.Module] = {}
    refused: dict[str, list[str]] = {}
    for path, module in layers:
        if module in back:
            continue
        try:
            new[module], warned = converted(module, name, unfused.get(module, options), classes.get(module))
        except ValueError as error:
            refused.setdefault(str(error), []).append(path or "the model")
            continue
        for warning in warned:
            warnings.warn(f"{path or 'the layer'} {warning}", stacklevel=2)
    if refused:
        for _, module in layers:
            withhold_group(module)
        reasons = "; ".join(f"{', '.join(paths)}: {reason}" for reason, paths in refused.items())
        if len(refused) == 1:
            reason, paths = next(iter(refused.items()))
            raise ValueError(f"can't convert {', '.join(paths)} to {name!r}: {reason}")
        raise ValueError(f"can't convert to {name!r} {reasons}")
    for module, layer in new.items():
        commit(module, layer)
    for module in back:
        settle(module)
    result = _replace(model, new | {module: reverted(module) for module in back})
    try:
        told = _warn_of_held(result, {module: path or "the layer" for path, module in layers})
        if new and name != PLAIN_NAME and (asking := methods_that_ask(result)):
            warnings.warn(
                f"{', '.join(asking)} asks for layers of torch's BatchNorm classes, which converted layers aren't, and "
                "so passes them over: ask for torch.nn.modules.batchnorm._BatchNorm, or for what they are now",
                stacklevel=2,
            )
        if not layers and not said and not told:
            warnings.warn("there is no batch normalization layer to convert: the model is as it was", stacklevel=2)
        with torch.inference_mode(False):  # the filters are trained later
            attach_norms(result, example_input, forward)
        if example_input is not None and has_values(result):
            unsaid = {layer for old, layer in new.items() if old not in told}
            _warn_of_uncalled(result, unsaid, example_input, forward)
    except Exception:
        for layer in new.values():
            if isinstance(layer, Attachable):
                layer.detach()
        _replace(result, {layer: old for old, layer in new.items()})
        raise
    return result


def revert(model: nn.Module) -> nn.Module:
    """Restore the layers that `convert` replaced, with their current parameters and statistics.

    Args:
        model: a model not wrapped by DDP or FSDP, nor compiled. Layers that were never converted stay.

    Returns:
        `model`, or the original layer where `model` is itself a converted layer.

    Raises:
        ValueError: the model is wrapped or compiled.
    """
    check_given(locals())
    _refuse_wrapped(model)
    layers = {module: reverted(module) for module in model.modules() if original_of(module) is not None}
    for module in layers:
        settle(module)
    names = {module: path or "the layer" for path, module in model.named_modules() if module in layers}
    model = _replace(model, layers)
    overlap_messages(model)
    _warn_of_held(model, names, others=False)
    return model


def _without_fusion(
    model: nn.Module,
    layers: list[tuple[str, nn.Module]],
    options: dict[str, Any],
    example_input: Example | None,
    forward: Forward | None,
) -> dict[nn.Module, dict[str, Any]]:
    """Options of the layers that can't be fused with an activation, if fusion was requested."""
    if not options.get("fuse_activation"):
        return {}
    after = activations_after(model, [layer for _, layer in layers], example_input, forward)
    relus = [path for path, layer in layers if after[layer] == 0]
    if relus and options.get("memory") == "invert":
        raise ValueError(
            f'memory="invert" needs a LeakyReLU after each layer, and a ReLU comes after {", ".join(relus)}: leave '
            'them out with exclude=, or use memory="recompute"'
        )
    plain = {key: value for key, value in options.items() if key not in ("fuse_activation", "memory")}
    return {layer: plain for layer, found in after.items() if isinstance(found, str)}


def _warn_of_uncalled(model: nn.Module, new: set[nn.Module], example_input: Example, forward: Forward | None) -> None:
    """Of converted layers without effect: a function may hold the old layer, or call batch_norm on its buffers."""
    called = {call.module for call in record(model, example_input, forward).calls}
    idle = [path or "the model" for path, module in model.named_modules() if module in new - called]
    if idle:
        warnings.warn(
            f"example_input doesn't reach {', '.join(idle)}: the conversion has no effect there if the model calls the "
            "layer in training otherwise than as a module, such as by a function made before, or by batch_norm with "
            "its parameters and buffers",
            stacklevel=3,
        )


def _is_convertible(module: nn.Module) -> bool:
    return original_of(module) is not None or looks_like_batch_norm(module)


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    seen: set[int] = set()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
        for name, value in vars(parent).items():
            if name not in OF_TORCH:
                vars(parent)[name] = with_new(value, new, seen)
    return new.get(model, model)


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        if compat.is_compiled(module):
            raise ValueError("the model is compiled already; convert first: torch.compile(syncbn.convert(model, ...))")
        for cls in type(module).__mro__:
            wrapper = compat.WRAPPERS.get(cls.__name__)
            if wrapper is not None and cls.__module__.startswith("torch."):
                raise ValueError(f"the model is wrapped by {cls.__name__} already; convert first: {wrapper}")


def _warn_of_held(model: nn.Module, names: dict[nn.Module, str], others: bool = True) -> list[nn.Module]:
    """Of batch norms that the model holds, but that aren't layers of it.

    Args:
        model: after its layers were exchanged.
        names: of the layers that were in it until now.
        others: whether to warn of norms that never were in it.

    Returns:
        The modules that it has warned of.
    """
    found = []
    for where, kind, module in held(model):
        if module in names:
            text = (
                f"{where} ({kind}) still holds {names[module]} as it was before the exchange of layers, which has no "
                f"effect where the model calls that: make it anew, or have the model call {names[module]} as a module"
            )
        elif others and any(map(_is_convertible, module.modules())) and model not in set(module.modules()):
            text = (
                f"{where} is in a plain {kind}, where modules are neither found nor trained nor saved, and so isn't "
                "converted: use nn.ModuleList or nn.ModuleDict, or make it an attribute of a module"
            )
        else:
            continue
        found.append(module)
        warnings.warn(text, stacklevel=3)
    return found


def _warn_of_unknown(model: nn.Module) -> int:
    """Of what may be batch normalization in another form, which stays as it is; returns the number of warnings."""
    found = 0
    graphs: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(graph) for graph in graphs):
            continue
        if isinstance(module, fx.GraphModule):
            calls = [n for n in module.graph.nodes if n.op == "call_function" and "batch_norm" in str(n.target)]
            if calls:
                found += 1
                graphs.append(f"{path}." if path else "")
                warnings.warn(
                    f"{path or 'the model'} is a graph that calls batch_norm itself, {len(calls)} times, which isn't "
                    "converted: convert the model before it is traced or exported",
                    stacklevel=3,
                )
        elif _has_statistics(module) and not (_is_convertible(module) or isinstance(module, _others())):
            found += 1
            warnings.warn(
                f"{path or 'the model'} ({type(module).__name__}) has running statistics, and isn't known as batch "
                "normalization: it isn't converted. Describe it to syncbn.norm.surgery.adapters.register_adapter, or "
                'say include="*" if it isn\'t',
                stacklevel=3,
            )
        elif calls_batch_norm(module) and not (_is_convertible(module) or isinstance(module, _others())):
            found += 1
            warnings.warn(
                f"{path or 'the model'} ({type(module).__name__}) calls batch_norm itself, with running statistics, "
                "which isn't converted: have it call a layer",
                stacklevel=3,
            )
    return found


def _has_statistics(module: nn.Module) -> bool:
    return all(isinstance(module._buffers.get(name), Tensor) for name in ("running_mean", "running_var"))


def _others() -> tuple[type[nn.Module], ...]:
    """Norms that convert knows, and leaves."""
    return (*registered_layers(), nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
