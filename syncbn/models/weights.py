"""Load weights from a file into a network, without running code from it and without silent omissions."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from syncbn.models.weight_files import read_state
from syncbn.models.weight_keys import (
    adapted_stem,
    counters_as_scalars,
    listed,
    matched,
    missing,
    new_heads,
    prefix_between,
)
from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import Capabilities
from syncbn.norm.core.messages import first_line
from syncbn.norm.surgery.forward import refuse_without_values
from syncbn.norm.surgery.given import check_given

_EXTRA = "_extra_state"


def load_weights(model: nn.Module, path: str | Path, *, key: str | None = None) -> str:
    """Load the weights of a file into a network, and say what was done.

    The file holds a `state_dict` of the network, as it is or under a name ("state_dict", "model", "model_state_dict",
    "state_dict_ema", ...). It is read with `weights_only`. The keys' prefixes "module.", "model.", "net." and
    "_orig_mod." are taken off, in any order, where the keys don't fit with them. If the file doesn't fit, the network
    is left unchanged.

    Two layers may differ in shape. With another number of classes the head stays as it is: the module that the model's
    attribute `head` names, else its last convolution or linear layer, and others of as many classes. With another
    number of channels, the weights of the first convolution are summed (for one channel) or repeated and scaled. Extra
    states of the network's modules are loaded, except for the memory of past steps that norms of this package have.

    Args:
        model: any network; one inside of DDP, DataParallel or `torch.compile`, too.
        path: a ".pth", ".pt", ".ckpt", ".bin", ".tar" or ".safetensors" file; the last needs the package safetensors.
        key: which state dict of the file, "state_dict_ema" for example. None takes the usual one; averaged weights only
            where there are no others.

    Returns:
        A sentence that says what was loaded and what wasn't.

    Raises:
        FileNotFoundError: the file doesn't exist.
        ValueError: an unknown file ending; a file that is damaged, holds Python objects or no such state dict; keys
            that are missing, unexpected, there twice, of the wrong shape or with numbers that the network's dtype
            can't hold; a network on the meta device, or one whose layers don't have their sizes yet.
        TypeError: it is no path, or `model` no network.
    """
    check_given(locals())
    while (inside := _inside(model)) is not None:
        model = inside
    refuse_without_values(model)
    state = model.state_dict()
    own = {name: value for name, value in state.items() if not name.endswith(_EXTRA)}
    if not isinstance(path, str | os.PathLike):
        hint = "; of a state_dict, model.load_state_dict" if isinstance(path, Mapping) else ""
        raise TypeError(f"path must be the path of a file of weights, got a {type(path).__name__}{hint}")
    read, which = read_state(Path(path), key)
    try:
        loaded, said = matched(read, state)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} doesn't fit {type(model).__name__}: {error}") from None
    extra = {name: loaded.pop(name) for name in list(loaded) if name.endswith(_EXTRA)}
    if unknown := [name for name in extra if name not in state]:
        said.append(f"left out: {listed(unknown)}")
    loaded = counters_as_scalars(loaded, own)
    loaded, stem = adapted_stem(model, own, loaded)
    heads = new_heads(model, own, loaded)
    kept = {name: value for name, value in loaded.items() if name not in heads}
    if found := _mistakes({name: own[name] for name in own if name not in heads}, kept):
        raise ValueError(f"{str(path)!r} doesn't fit {type(model).__name__}: " + "; ".join(found))
    _put(model, state, kept, {name: extra[name] for name in extra if name in state and _is_foreign(model, name)}, path)
    if heads:
        classes = f"{len(own[heads[0]])} classes where the file has {len(loaded[heads[0]])}"
        said.insert(0, f"{', '.join(heads)} made anew, for {classes}")
    said += [stem] if stem else []
    return "; ".join([f"{len(kept)} tensors from {path}{which}", *said])


def _inside(model: nn.Module) -> nn.Module | None:
    """The network in a wrapper; None if it isn't one."""
    if compat.is_compiled(model):
        return compat.compiled_from(model)
    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else None


def _is_foreign(model: nn.Module, extra: str) -> bool:
    layer = model.get_submodule(extra.removesuffix(_EXTRA).removesuffix("."))
    return not isinstance(layer, Capabilities)


def _mistakes(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    absent, unexpected = missing(own, loaded), [name for name in loaded if name not in own]
    if absent and unexpected and (said := prefix_between(loaded, own)):
        return [said]
    shapes = [
        f"{name} ({tuple(loaded[name].shape)} in the file, {tuple(own[name].shape)} in the network)"
        for name in own
        if name in loaded and own[name].shape != loaded[name].shape
    ]
    empty = [name for name, value in loaded.items() if value.is_meta]
    lost = [
        f"{name} ({loaded[name].dtype} in the file, {own[name].dtype} in the network)"
        for name in own
        if name in loaded and not (shapes or empty) and _loses(loaded[name], own[name].dtype)
    ]
    named = {"missing": absent, "unexpected": unexpected, "of another shape": shapes}
    named |= {"without values, on the meta device": empty, "beyond the network's dtype": lost}
    return [f"{len(names)} {what}: {listed(names)}" for what, names in named.items() if names]


def _loses(loaded: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers become infinite in a dtype, or lose their imaginary parts."""
    if loaded.dtype == dtype:
        return False
    if loaded.is_complex() and not dtype.is_complex:
        return bool((loaded.imag != 0).any())
    return dtype.is_floating_point and not torch.equal(loaded.double().isfinite(), loaded.to(dtype).double().isfinite())


@torch.no_grad()
def _put(
    model: nn.Module, state: dict[str, Any], kept: dict[str, Tensor], extra: dict[str, Any], path: str | Path
) -> None:
    """Load, look whether the numbers have arrived, and take everything back where they haven't."""
    before = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
    extra_before = {name: copy.deepcopy(state[name]) for name in extra}
    try:
        model.load_state_dict({**state, **_with_tied(state, kept), **extra})
        after = model.state_dict()
        if lost := [name for name, value in kept.items() if not _same(after[name], value)]:
            raise RuntimeError(f"after loading, {listed(lost)} of the network isn't what the file has")
    except Exception as error:  # of a module's own loading
        for name, value in before.items():
            state[name].copy_(value)
        for name, value in extra_before.items():
            model.get_submodule(name.removesuffix(_EXTRA).removesuffix(".")).set_extra_state(value)
        raise ValueError(f"{str(path)!r} doesn't fit {type(model).__name__}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of an error that tells more than that there are some."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else first_line(error)


def _with_tied(state: Mapping[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, also under the other names that the network has for them."""
    at = {state[name].data_ptr(): value for name, value in kept.items() if state[name].numel()}
    return {name: at[value.data_ptr()] for name, value in state.items() if _is_tied(name, value, kept, at)} | kept


def _is_tied(name: str, value: object, kept: Mapping[str, Tensor], at: Mapping[int, Tensor]) -> bool:
    return name not in kept and isinstance(value, Tensor) and value.numel() > 0 and value.data_ptr() in at


def _same(own: Tensor, loaded: Tensor) -> bool:
    expected = loaded.to(own.device, own.dtype)
    return torch.equal(own, expected) or torch.allclose(own, expected, rtol=0, atol=0, equal_nan=True)
