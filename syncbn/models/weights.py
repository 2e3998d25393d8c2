"""Loading weights from a file into a network, without running code from it and without silent omissions."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core.messages import first_line

_STATE = "_extra_state"  # a layer's memory of past steps: not a weight
_PREFIXES = ("module.", "_orig_mod.", "net.")  # DDP's, torch.compile's, this package's tasks'


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Load the weights of a file into a network; keep the new head where the number of classes differs.

    The file holds the `state_dict` of the same network, as torchvision publishes it or as this package saves it:
    ".pth", ".pt" or ".ckpt" (bare, or under the key "state_dict" or "model"), read with `weights_only`; or
    ".safetensors", which needs the package of that name. Key prefixes of DDP, torch.compile and this package's tasks
    are removed. If the file doesn't fit, the network is left unchanged.

    Args:
        model: a network of this package, or any other; its attribute `head`, where it has one, names the module that
            stays new for a different number of classes ("fc", for example).
        path: path of the file.

    Returns:
        A sentence that says what was loaded and what wasn't.

    Raises:
        FileNotFoundError: the file doesn't exist.
        ValueError: an unknown file ending; a file that is damaged or holds Python objects; keys that are missing,
            unexpected, or of the wrong shape, each named.
    """
    path = Path(path)
    loaded = _without_prefixes(_read(path))
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(_STATE)}
    head = f"{model.head}." if isinstance(getattr(model, "head", None), str) else None
    anew = [
        key
        for key in own
        if head and key.startswith(head) and key in loaded and _differs_in_classes(own[key], loaded[key])
    ]
    kept = {key: value for key, value in loaded.items() if key not in anew}
    if found := _mistakes(own, kept, anew):
        raise ValueError(f"{str(path)!r} doesn't fit {type(model).__name__}: " + "; ".join(found))
    model.load_state_dict({**model.state_dict(), **kept})
    text = f"{len(kept)} tensors from {path}"
    if anew:
        file_classes, classes = len(loaded[anew[0]]), len(own[anew[0]])
        text += f"; {', '.join(anew)} made anew, for {classes} classes where the file has {file_classes}"
    return text


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pth", ".pt", ".ckpt"):
        raise ValueError(f"weights are read from .pth, .pt, .ckpt or .safetensors files, got {str(path)!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(path)!r} is not a file of tensors, and is not read further ({first_line(error)}); if it holds a "
            "whole model, save its state_dict() with torch.save and load that"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({first_line(error)}); fetch it again") from error
    return _tensors(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"to read {str(path)!r}: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged ({first_line(error)}); fetch it again") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = content if isinstance(content, Mapping) else {}
    state = {key: value for key, value in state.items() if not str(key).endswith(_STATE)}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{str(path)!r} holds no state_dict, a dict of tensors; save one with torch.save")
    return state


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        # A task's checkpoint has metrics beside its network; in all other files every key has the prefix.
        chosen = [key for key in state if key.startswith(prefix)]
        if chosen and (prefix == "net." or len(chosen) == len(state)):
            state = {key.removeprefix(prefix): state[key] for key in chosen}
    return state


def _differs_in_classes(own: Tensor, loaded: Tensor) -> bool:
    return own.shape != loaded.shape and own.shape[1:] == loaded.shape[1:]


def _mistakes(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], anew: list[str]) -> list[str]:
    # Files from before torch 0.4.1 have no num_batches_tracked; the network's own zeros are kept.
    missing = [k for k in own if k not in loaded and k not in anew and not k.endswith(".num_batches_tracked")]
    unexpected = [key for key in loaded if key not in own]
    shapes = [
        f"{key} ({tuple(loaded[key].shape)} in the file, {tuple(own[key].shape)} in the network)"
        for key in own
        if key in loaded and own[key].shape != loaded[key].shape
    ]
    named = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in named.items() if keys]
