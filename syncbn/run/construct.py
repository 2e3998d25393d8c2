"""Construction of the object of a config node's `_target_`."""

import inspect
from collections.abc import Mapping
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from syncbn.run.targets import check_made, checked_object, kind_at, targets


def construct(where: str, node: DictConfig, **objects: Any) -> Any:
    """Call a node's `_target_` with the node's keys and `objects`; returns a partial where one is expected.

    Args:
        where: dotted name of the node, such as "callbacks.ema", which determines what is expected.
        node: node of the config.
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
    """Names of the parameters of a node's `_target_`; empty if they can't be determined.

    Raises:
        ValueError: the `_target_` isn't what its place expects.
    """
    found = checked_object(where, node._target_)
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # a class written in C
        return {}
    return {name: one for name, one in parameters.items() if one.kind is not one.POSITIONAL_ONLY}
