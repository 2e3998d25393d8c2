"""Read state dicts from the files that people publish, without running code from them."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syncbn.models.harmless import harmless_globals, is_array
from syncbn.norm.core.messages import first_line
from syncbn.norm.core.options import suggest

_ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_EXTRA = "_extra_state"  # a layer's memory of past steps: not a weight
# The names that PyTorch's tutorials, Lightning, timm, detectron2 and others save a state dict under. The first that a
# file has is taken; averaged weights are taken by `key=`, or where there is nothing else. Lightning's weight averaging
# puts them under "state_dict", and the others under "current_model_state".
_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "current_model_state")
_AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema")


def read_state(path: Path, key: str | None = None) -> tuple[dict[str, Any], str]:
    """Read one state dict of a file: tensors, and modules' extra states.

    Args:
        path: a ".pth", ".pt", ".ckpt", ".bin" or ".tar" file of torch's, or a ".safetensors" file.
        key: the name of the state dict in the file, with dots between the names of nested ones; None takes the usual
            one.

    Returns:
        The state dict, and a clause that names it and the others where the file has several, and what it has beside
        tensors.

    Raises:
        FileNotFoundError: the file doesn't exist.
        ValueError: an unknown ending; a file that is damaged, holds Python objects or no state dict; a key that it
            doesn't have; several state dicts, of which none has a usual name.
    """
    content = _read(path)
    # Only where there is no other, one with a number of epochs among its tensors, say.
    states = dict(_states(content)) or dict(_states(content, mostly=True))
    if not states:
        raise ValueError(f"{str(path)!r} holds no state_dict, a dict of tensors; save one with torch.save")
    names = [name for name in states if name]
    if key is not None and key not in states:
        if not names:
            raise ValueError(f"{str(path)!r} is one state_dict, without a name: leave key={key!r} out")
        raise ValueError(f"{str(path)!r} has no state_dict {key!r}; {suggest(key, names)}")
    name = _usual(list(states), path) if key is None else key
    # A checkpoint has other dicts of tensors, too: random states, say.
    others = [f"key={other}" for other in names if other != name and other.split(".")[0] in _PLAIN + _AVERAGED]
    said = f", its {name}" if others or name.split(".")[0] in _AVERAGED else ""
    if others:
        said += f" (there are {', '.join(others)}, too)"
    state = {key: value for key, value in states[name].items() if key.endswith(_EXTRA) or isinstance(value, Tensor)}
    if left := [key for key in states[name] if key not in state]:
        said += f", without its {', '.join(left[:5])}"
    return state, said


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in _ENDINGS:
        raise ValueError(
            f"weights are read from {', '.join(_ENDINGS)} or .safetensors files, got {str(path)!r}; rename a file "
            "that torch.save has written"
        )
    try:
        with torch.serialization.safe_globals(harmless_globals()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*looks like a TorchScript archive")  # which is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        holds = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds a {holds[1]}, which may run code" if holds else first_line(error)
        raise ValueError(
            f"{str(path)!r} is not a file of tensors, and is not read further ({reason}); if it holds a whole model, "
            "save its state_dict() with torch.save and load that"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{str(path)!r} is a TorchScript archive: read it with torch.jit.load, save its state_dict() with "
                "torch.save and load that"
            ) from error
        raise ValueError(f"{str(path)!r} is damaged ({first_line(error)}); fetch it again") from error


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


def _states(content: Any, name: str = "", mostly: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the state dicts in a file's content, with their names; an optimizer's isn't one.

    Args:
        content: what was read.
        name: its name.
        mostly: whether one that has more tensors than other values is one, too.
    """
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    state = {key: _tensor(value) for key, value in content.items()}
    tensors = [isinstance(value, Tensor) for key, value in state.items() if not key.endswith(_EXTRA)]
    if tensors and (sum(tensors) > len(tensors) / 2 if mostly else all(tensors)):
        yield name, state
    elif not name or name.rpartition(".")[2] in _PLAIN + _AVERAGED:
        for key, value in content.items():
            if not key.startswith("optim"):
                yield from _states(value, f"{name}.{key}".lstrip("."), mostly)


def _tensor(value: Any) -> Any:
    """A tensor of plain numbers of what may hold them otherwise."""
    if is_array(value):
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor) and value.is_quantized:
        return value.dequantize()
    return value.to_dense() if isinstance(value, Tensor) and value.layout is not torch.strided else value


def _usual(names: list[str], path: Path) -> str:
    if len(names) == 1:
        return names[0]
    for usual in (*_PLAIN, *_AVERAGED):
        if found := [name for name in names if name.split(".")[0] == usual]:
            return found[0]
    choices = ", ".join(f"key={name!r}" for name in names)
    raise ValueError(f"{str(path)!r} holds several state_dicts: choose one by {choices}")
