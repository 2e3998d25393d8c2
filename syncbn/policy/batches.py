"""Batches of the policies, and their iteration in step over ranks."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncbn.norm.core import compat
from syncbn.norm.core.exchange import all_sum
from syncbn.norm.core.inspection import signature_of
from syncbn.norm.surgery.forward import Forward, tensors_in

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Call a model with a batch.

    Without `forward`, a tensor is the model's input, a mapping holds its keyword arguments, and of a tuple or list,
    such as (inputs, labels), the first element is the input: a tensor, a list of tensors, or a mapping.

    Args:
        model: in the mode it is to run in.
        batch: on the model's device.
        forward: how to call it instead, `forward(model, batch)`.

    Raises:
        TypeError: the batch is neither; a mapping has a key that the model doesn't take.
    """
    if forward is not None:
        return forward(model, batch)
    inputs = inputs_of(batch)
    if not isinstance(inputs, Mapping):
        return model(inputs)
    _check_keywords(model, inputs)
    return model(**inputs)


def inputs_of(batch: Any) -> Any:
    """Return what of a batch a model is called with.

    Raises:
        TypeError: nothing of the batch can be that.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(inputs, Tensor | Mapping) or (_is_list(inputs) and all(isinstance(t, Tensor) for t in inputs)):
        return inputs
    raise TypeError(
        "a batch must be a tensor, a dict of the model's keyword arguments, or a tuple or list that begins with one or "
        f"with a list of tensors, got {_kind(batch)}; say how the model is called with forward=lambda model, batch: ..."
    )


def _check_keywords(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """A key that the model doesn't take is a mistake that its own TypeError tells less of."""
    parameters = signature_of(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    unknown = [key for key in batch if key not in names]
    if unknown and not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        known = [f"{key}=batch[{key!r}]" for key in batch if key in names] or [f"batch[{unknown[0]!r}]"]
        raise TypeError(
            f"{type(model).__name__} takes {', '.join(names) or 'no arguments'}; the batch has "
            f"{', '.join(map(repr, unknown))}: give forward=lambda model, batch: model({', '.join(known)}), for "
            "example"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0


def _kind(batch: Any) -> str:
    name = type(batch).__name__
    return f"{name} of {type(batch[0]).__name__}" if _is_list(batch) else name


def num_samples(batch: Any) -> int | None:
    """Return the samples in a batch, by the first tensor in its input; of a list of tensors, one for each."""
    inputs = batch[0] if _is_list(batch) else batch
    if _is_list(inputs):
        return len(inputs)
    tensor = next((t for t in tensors_in(inputs) if t.dim()), None)
    return None if tensor is None else len(tensor)


def in_step(
    batches: Iterable[Any],
    max_batches: int | None,
    device: torch.device,
    group: ProcessGroup | None,
    forward: Forward | None = None,
) -> Iterator[Any]:
    """The batches on a device, for as long as every rank of the group has one.

    Raises:
        TypeError: a batch that a model can't be called with, where `forward` doesn't say how.
        ValueError: on every rank, when there are no batches, when only some ranks have another one, or when
            `max_batches` isn't at least 1.
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1, or None for all, got {max_batches}")
    iterator = islice(batches, max_batches)
    count, nothing = 0, object()
    while True:
        batch = next(iterator, nothing)
        having = all_sum(torch.tensor(0.0 if batch is nothing else 1.0, device=device), group).item()
        if having == 0:
            break
        if batch is nothing or (group is not None and having < group.size()):
            raise ValueError(
                f"after {count} batches {having:.0f} of the ranks have another one, the others have none: give every "
                "rank the same number of batches (of any size), or max_batches="
            )
        if forward is None:
            inputs_of(batch)
        count += 1
        yield on_device(batch, device)
    if count == 0:
        raise ValueError("there are no batches; a loader that is empty, or a generator that is used up?")


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device, in the containers of the caller."""
    if isinstance(batch, Mapping) and not isinstance(batch, dict):  # transformers' BatchEncoding, say
        batch = dict(batch)
    return compat.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)


@contextmanager
def single_samples_skipped(batch: Any, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Go on after a batch of one sample, of which torch's layers refuse to take statistics, and warn of it.

    Args:
        batch: that the model is called with inside.
        undo: takes back what the layers before have counted of it.
    """
    try:
        yield
    except ValueError as error:
        if num_samples(batch) != 1 or "more than 1 value per channel" not in str(error):
            raise
        undo()
        warnings.warn(
            "a batch of one sample is skipped: a layer has a single value of each channel, which has no variance; "
            "drop_last=True leaves such a batch out",
            stacklevel=3,
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Model inside DDP, whose forward would broadcast buffers."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer."""
    tensor = next((t for tensors in (model.parameters(), model.buffers()) for t in tensors), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Restore the state of Python's and torch's generators, on the CPU and on `device`, at the end."""
    python = random.getstate()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
