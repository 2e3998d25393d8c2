"""Restriction of checkpoints to content that can be read without running code."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

_HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
_AS_THEY_ARE = (type(None), bool, Tensor, torch.dtype, torch.device)
_NUMBERS_AND_TEXTS: tuple[Any, ...] = (int, float, complex, str, bytes)
_LEFT_OUT = object()


def with_plain_hyper_parameters(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Remove hyper-parameters that are objects from a checkpoint; returns it and their names.

    `save_hyperparameters()` stores every argument of a LightningModule, including networks, which are in the checkpoint
    anyway, and functions that make optimizers. Reading such a checkpoint would run the code that it names.
    """
    plain, left_out = dict(checkpoint), []
    for key in _HYPER_PARAMETERS:
        if isinstance(plain.get(key), Mapping):
            kept = {name: _plain(value) for name, value in plain[key].items()}
            left_out += [str(name) for name, value in kept.items() if value is _LEFT_OUT]
            plain[key] = {name: value for name, value in kept.items() if value is not _LEFT_OUT}
    for key in [key for key in plain if str(key).endswith("hparams_type")]:
        del plain[key]  # the class of the mapping, such as OmegaConf's
    return plain, left_out


def _plain(value: Any) -> Any:
    if isinstance(value, _AS_THEY_ARE):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):  # int and str enums are stored by value, others count as objects
        return value.value if isinstance(value, int | str) else _LEFT_OUT
    for kind in _NUMBERS_AND_TEXTS:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return _all(dict, value.keys(), map(_plain, value.values()))
    if isinstance(value, tuple):
        return _all(tuple, None, map(_plain, value))
    if isinstance(value, Sequence):
        return _all(list, None, map(_plain, value))
    return _LEFT_OUT


def _all(kind: type, keys: Iterable[Any] | None, values: Iterable[Any]) -> Any:
    """Convert a container of plain values; None if one of them isn't plain."""
    found = list(values)
    if any(value is _LEFT_OUT for value in found):
        return _LEFT_OUT
    return kind(found) if keys is None else dict(zip(keys, found, strict=True))
