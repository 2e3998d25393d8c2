"""Construction of the object of a config node's `_target_`."""

import inspect
import types
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from syncbn.norm.core.inspection import signature_of
from syncbn.run.targets import check_made, checked_object, kind_at, targets

_PLAIN = (str, bytes, bool, int, float, complex, list, tuple, dict, set, types.NoneType)  # what a config file can hold


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
        parameters = _signature(found).parameters
    except (TypeError, ValueError):  # a class written in C
        return {}
    return {name: one for name, one in parameters.items() if one.kind is not one.POSITIONAL_ONLY}


def asks_for(name: str, where: str, node: DictConfig) -> bool:
    """Whether a node's `_target_` asks for an object, such as the network, by a parameter that the node leaves free.

    A parameter of the name that is a plain value by its annotation, else by its default, asks for none: in
    `norm: str = "bn"` or `optimizer="adam"`, the name means another thing.
    """
    parameter = parameters_of(where, node).get(name)
    if parameter is None or node.get(name) is not None:
        return False
    if kinds := _kinds(parameter.annotation):
        return any(kind not in _PLAIN for kind in kinds)
    return parameter.default is None or not isinstance(parameter.default, _PLAIN)


def is_number(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is one whole number, by its annotation, else by its default."""
    kinds = _kinds(parameter.annotation) - {types.NoneType}
    return kinds == {int} if kinds else type(parameter.default) is int


def _signature(found: Any) -> inspect.Signature:
    try:
        return inspect.signature(found, eval_str=True)
    except Exception:  # an annotation of what is imported for type checkers alone
        return signature_of(found)


def _kinds(annotation: Any) -> set[Any]:
    """Classes in an annotation, its union's members; empty if it doesn't say."""
    if annotation in (inspect.Parameter.empty, Any, object) or isinstance(annotation, str | ForwardRef):
        return set()
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        members = [_kinds(part) for part in parts]
        return set().union(*members) if all(members) else set()
    if origin is Literal:
        return {type(part) for part in parts}
    if origin is Annotated:
        return _kinds(parts[0])
    kind = types.NoneType if annotation is None else origin or annotation
    return {kind} if isinstance(kind, Hashable) else set()
