"""Check of public functions' arguments by name: a value of the wrong kind is refused before anything changes."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from syncbn.norm.core.arguments import plain
from syncbn.norm.core.exchange import check_group
from syncbn.norm.core.inspection import signature_of


def check_given(arguments: Mapping[str, Any], required: Collection[str] = ()) -> None:
    """Check the arguments that several public functions share; such a function begins with it, with its `locals()`.

    Args:
        arguments: values by the names that public functions give them; other names aren't checked.
        required: those that may not be None, of the ones that may elsewhere.

    Raises:
        TypeError: a value that can't be meant: a class or a state dict as the model, one tensor as the batches.
        ValueError: a process group without this rank.
    """
    for name, value in arguments.items():
        check = _CHECKS.get(name)
        if check is not None and not (value is None and name in _OPTIONAL and name not in required):
            check(name, value)


def _model(name: str, value: Any) -> None:
    if isinstance(value, nn.Module):
        return
    if isinstance(value, type):
        hint = f"the class {value.__name__}: make an instance of it"
    elif isinstance(value, Mapping):
        hint = "a dict: of a state dict, load it into a model with load_state_dict, and give the model"
    elif isinstance(value, str | os.PathLike):
        hint = f"{os.fspath(value)!r}: syncbn.load_run opens a run folder; load other files into a model of yours"
    elif isinstance(value, list | tuple):
        hint = (
            f"a {type(value).__name__}: make one of its layers with nn.Sequential, or call this for each of its models"
        )
    elif isinstance(value, torch.export.ExportedProgram):
        hint = "an ExportedProgram: do this before the export"
    else:
        hint = f"{_kind(value)}"
    raise TypeError(f"{name} must be a torch.nn.Module, got {hint}")


def _batches(name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor | Mapping) or hasattr(value, "__array__"):
        raise TypeError(
            f"{name} must be several batches, such as a DataLoader, got {_kind(value)}: give [batch] for one"
        )
    if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
        raise TypeError(
            f"{name} must be batches, got {_kind(value)}, which has single samples: give a DataLoader of it"
        )
    if isinstance(value, str | bytes | nn.Module) or (
        not isinstance(value, Iterable) and not hasattr(value, "__getitem__")
    ):
        raise TypeError(f"{name} must be an iterable of batches, such as a DataLoader, got {_kind(value)}")


def _function(name: str, value: Any) -> None:
    home = type(value).__module__ if isinstance(value, nn.Module) else getattr(value, "__module__", None)
    if home in ("torch.nn.modules.loss", "torch.nn.functional"):
        called = "cross_entropy(model(batch[0]), batch[1])" if name == "loss" else "model(batch[0])"
        raise TypeError(
            f"{name} gets a model and a batch, got {_kind(value)}: give {name}=lambda model, batch: {called}"
        )
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} must be a function, {name}(model, batch), got {_kind(value)}")
    try:
        signature = signature_of(value)
    except ValueError:  # one written in C
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"{name} must take two arguments, {name}(model, batch), got {_kind(value)}{signature}"
        ) from None


def _group(name: str, value: Any) -> None:
    check_group(value)


def _int(name: str, value: Any) -> None:
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {_kind(value)}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value}")


def _number(name: str, value: Any) -> None:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")


def _bool(name: str, value: Any) -> None:
    if not isinstance(value, bool | int) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{name} must be True or False, got {_kind(value)}")


def _string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {_kind(value)}")


def _kind(value: Any) -> str:
    """A short description of a value: itself if it is short, else its class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', repr(value))}"
    if isinstance(value, str | int | float | complex | None):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "model": _model,
    "batches": _batches,
    "reference": _batches,
    "forward": _function,
    "loss": _function,
    "process_group": _group,
    "name": _string,
    "key": _string,
    "max_batches": _int,
    "steps": _int,
    "ranks": _int,
    "ratio": _number,
    "lr": _number,
    "tolerance": _number,
    "timeout_s": _number,
    "stats": _bool,
    "affine": _bool,
    "episodic": _bool,
}
_OPTIONAL = ("batches", "reference", "forward", "loss", "process_group", "max_batches", "steps", "key")
