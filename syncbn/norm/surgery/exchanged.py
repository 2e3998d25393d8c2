"""One layer in the place of another: what it is built with, what it is handed, and what it hands back."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.attachable import Attachable
from syncbn.norm.core.exchange import OwnGroup
from syncbn.norm.core.registry import norm_layer, norm_options
from syncbn.norm.core.tracking import TrackingNorm
from syncbn.norm.surgery.adapters import adapter_for
from syncbn.norm.surgery.carry import ORIGINAL, RECORD, Names, carry
from syncbn.norm.surgery.plain import dimensions_of, narrow_statistics, plain_layer

# Settings that may change while a layer stands for another one, and are handed back then.
_SETTINGS = ("num_features", "eps", "momentum", "track_running_stats")


@dataclass
class Conversion:
    """What a new layer remembers of its conversion, beside the layer that it stands for.

    Attributes:
        original: the layer that it stands for; not in the new layer's `__dict__` itself, which TorchScript reads.
        names: of what it had by itself.
        settings: num_features, eps, momentum and track_running_stats, as they were then.
        group: the process group of the old layer, a `torch.nn.SyncBatchNorm`, which can neither copy nor pickle one.
    """

    original: nn.Module
    names: Names
    settings: dict[str, Any] = field(default_factory=dict)
    group: OwnGroup | None = None


def original_of(module: nn.Module) -> nn.Module | None:
    """The layer that a converted one stands for."""
    record = vars(module).get(RECORD)
    return vars(module).get(ORIGINAL) if record is None else record.original


# What a conversion makes is trained later, also where it is called in inference mode.
@torch.inference_mode(False)
def converted(module: nn.Module, name: str, options: dict[str, Any], plain: Any = None) -> tuple[nn.Module, list[str]]:
    """A new layer in the place of `module`, and what to warn of. Nothing of `module` is changed but by `commit`.

    Args:
        module: a batch norm, or a layer that was converted from one, which is brought up to date.
        name: of the norm.
        options: its arguments, over those of the old layer.
        plain: the class of torch's to build in place of a norm by name.

    Raises:
        ValueError: something would be lost, or the norm can't have these options.
    """
    old = reverted(module)
    adapter = adapter_for(old)
    assert adapter is not None, "only layers that look like batch norms are selected"
    arguments = adapter.arguments(old)
    warned = []
    exact = arguments.get("eps") == 0 and "eps" not in options
    if exact:
        arguments["eps"] = 1.0  # for the check of arguments; torch takes 0
        warned.append("has eps=0, by which a channel without variance is divided by 0, as it was before")
    some_tensor = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    # A default device may be another one: one that has no memory, say.
    with contextlib.nullcontext() if some_tensor is None else some_tensor.device:
        if plain is not None:
            new = plain_layer(plain, arguments)
        else:
            num_features = arguments.pop("num_features")
            if options.get("keras_momentum") is not None:
                del arguments["momentum"]
            known = norm_options(name)
            shared = {key: value for key, value in arguments.items() if key in known}
            new = norm_layer(name, **(shared | options))(num_features)
    if getattr(old, "running_mean", None) is None and isinstance(getattr(new, "running_mean", None), Tensor):
        warned.append(
            f"has no running statistics and evaluates by its batch, and {name!r} evaluates by those that it begins to "
            "track: train it, or call syncbn.recalibrate, before an evaluation"
        )
    if exact and hasattr(new, "eps"):
        new.eps = 0.0  # type: ignore[assignment]
    if some_tensor is not None:
        new.to(some_tensor.device, some_tensor.dtype)
    _hand_over(old, new)
    _share_group(module, old, new, options)
    if isinstance(new, TrackingNorm):
        new.adopt(old)
    if hasattr(new, "dimensions"):
        new.dimensions = list(dimensions_of(old) or ())  # type: ignore[assignment]
    if "track_running_stats" not in options and hasattr(old, "track_running_stats") and hasattr(new, "momentum"):
        new.track_running_stats = old.track_running_stats
    if plain is not None:
        narrow_statistics(new)
    adapter.finish(new, old)
    settings = {setting: getattr(new, setting) for setting in _SETTINGS if hasattr(new, setting)}
    group = getattr(old, "process_group", None) if isinstance(old, nn.SyncBatchNorm) else None
    vars(new)[RECORD] = Conversion(old, Names.of(new), settings, None if group is None else OwnGroup(group))
    carry(old, new)
    return new, warned


@torch.inference_mode(False)
def commit(module: nn.Module, new: nn.Module) -> None:
    """Let `new`, which `converted` made of `module`, have what only one of the two can have."""
    if isinstance(module, Attachable):
        module.detach()
    _turn_hooks_to(new)
    withhold_group(new)


def withhold_group(module: nn.Module) -> None:
    """Take the process group from the layer that a converted one stands for."""
    old, record = original_of(module), vars(module).get(RECORD)
    if old is not None and record is not None and record.group is not None:
        old.process_group = None  # type: ignore[assignment]


@torch.inference_mode(False)
def reverted(module: nn.Module) -> nn.Module:
    """The layer that a converted one stands for, brought up to date; any other module as it is.

    Raises:
        ValueError: it had a process group, which was lost when the model was saved; it was parametrized since.
    """
    old = original_of(module)
    if old is None:
        return module
    if hasattr(module, "parametrizations"):
        raise ValueError(
            f"{type(module).__name__} is parametrized since it was converted: remove it with "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    record: Conversion = vars(module).get(RECORD) or Conversion(old, Names.of(module))  # of version 0.1
    if record.group is not None:
        own = record.group if not record.group.is_lost else getattr(module, "own_group", record.group)
        if own.is_lost:
            raise ValueError(
                "the layer that this one stands for had a process group, which no file holds: call "
                "syncbn.norm.core.groups.set_process_group(model, group) first"
            )
        old.process_group = own.group  # type: ignore[assignment]
    given: Any = getattr(module, "own_group", None)
    if given is not None and not given.is_lost and getattr(old, "own_group", given).is_lost:
        old.own_group = given
    _hand_over(module, old)
    for setting, value in record.settings.items():
        if hasattr(old, setting) and getattr(module, setting) != value:
            setattr(old, setting, getattr(module, setting))
    if RECORD in vars(module):
        carry(module, old)
    return old


@torch.inference_mode(False)
def settle(module: nn.Module) -> None:
    """Let the layer that takes the place of `module` again have what only one of the two can have."""
    if isinstance(module, Attachable):
        module.detach()
    old = original_of(module)
    if old is not None:
        _turn_hooks_to(old)


def _hand_over(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the tensors that both layers have, and the hooks and the mode of `source`."""
    for key, parameter in source._parameters.items():
        if key in target._buffers and parameter is not None:  # to a frozen layer, which an optimizer doesn't reach
            target._buffers[key] = parameter.detach().clone()
        elif key in target._parameters:
            target._parameters[key] = parameter
    for key, buffer in source._buffers.items():
        known = target._parameters.get(key)
        if buffer is None:
            continue
        mine = target._buffers.get(key)
        # A recurrent norm has a row for each time step. The number of channels may change, by pruning.
        if mine is not None and mine.dim() == buffer.dim():
            target._buffers[key] = buffer
        elif mine is None and key == "num_batches_tracked" and key in target._buffers:
            target._buffers[key] = buffer  # the others were taken away from a layer, to switch it to its batches
        elif known is not None:  # from a frozen layer; the same Parameter, for an optimizer that holds it
            known.data = buffer.clone()
    compat.share_hooks(source, target)
    target.training = source.training


def _share_group(module: nn.Module, old: nn.Module, new: nn.Module, options: dict[str, Any]) -> None:
    """Let `new` synchronize over the ranks that the layer before did, unless it is told which."""
    if "process_group" in options or not hasattr(new, "own_group"):
        return
    for layer in (module, old):
        own: Any = getattr(layer, "own_group", None) or OwnGroup(getattr(layer, "process_group", None))
        if own.key or own.is_lost:
            new.own_group = own
            return


def _turn_hooks_to(layer: Any) -> None:
    """Hooks that are called before a state dict is loaded know their module."""
    for hook in compat.load_state_dict_pre_hooks(layer):
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(layer)
