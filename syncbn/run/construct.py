"""From a node of the config to the object that its `_target_` makes."""

import inspect
from collections.abc import Mapping
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from syncbn.run.targets import check_made, checked_object, kind_at, targets


def construct(where: str, node: DictConfig, **objects: Any) -> Any:
    """Call a node's `_target_` with the node's keys and `objects`; a partial of it where its place expects one.

    Args:
        where: the node's dotted name, "callbacks.ema" say, which says what is expected there.
        node: of the config.
        objects: further arguments.

    Raises:
        ValueError: a `_target_`, of the node or in its arguments, isn't what its place expects.
    """
    plain = OmegaConf.to_container(node, resolve=True)
    for place, part in targets(plain, where):
        checked_object(place, part["_target_"])
    # Objects aren't given to `instantiate`: it would turn dataclasses among them into configs.
    make = hydra.utils.instantiate(DictConfig(plain), _convert_="all", _partial_=True)
    if kind_at(where).built_later:
        return make
    check_made(where, made := make(**objects))
    return made


def parameters_of(where: str, node: DictConfig) -> Mapping[str, inspect.Parameter]:
    """What can be given by name to what a node's `_target_` leads to; nothing where Python can't tell.

    Raises:
        ValueError: the `_target_` isn't what its place expects.
    """
    found = checked_object(where, node._target_)
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # of a class that is written in C
        return {}
    return {name: one for name, one in parameters.items() if one.kind is not one.POSITIONAL_ONLY}
