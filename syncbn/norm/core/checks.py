"""Checks of arguments and inputs, shared by all layers."""

import operator
import warnings
from typing import Any, SupportsIndex

import torch
from torch import Tensor


def check_num_features(num_features: SupportsIndex) -> int:
    """Return it as an int, which NumPy's integers aren't; raise `TypeError` or `ValueError` if it is no number."""
    try:
        number = None if isinstance(num_features, bool) else operator.index(num_features)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"num_features must be an int, got {num_features!r}")
    if number < 1:
        raise ValueError(f"num_features must be at least 1, got {number}")
    return number


def divisors(number: int) -> list[int]:
    """Divisors of a number of channels, including 1 and itself."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def check_divides(name: str, value: object, num_features: int) -> None:
    """Raise `ValueError` if an integer, called `name`, doesn't divide the channels."""
    check_num_features(num_features)
    if isinstance(value, int) and value not in divisors(num_features):
        allowed = divisors(num_features)
        raise ValueError(f"{name} must divide the {num_features} channels, got {value}; allowed: {allowed}")


def check_dimensions(input: Tensor, dimensions: list[int]) -> None:
    """Raise `ValueError` unless the number of dimensions is one of `dimensions`, or there are none of these."""
    if len(dimensions) > 0 and input.dim() not in dimensions:
        taken = " or ".join([f"{number}D" for number in dimensions])
        raise ValueError(
            f"expected {taken} input (got {input.dim()}D input), as the layer that this one was converted from"
        )


def warn_of_small_groups(input: Tensor, num_groups: int) -> None:
    """Warn if each group has one value or two: normalized they are 0 or ±1, whatever they are, without a gradient.

    Raises:
        ValueError: one value of one sample, which torch refuses.
    """
    if torch.compiler.is_compiling() or input.dim() < 2:
        return
    values = input.shape[1:].numel()
    if values not in (num_groups, 2 * num_groups):
        return
    fewer = [number for number in divisors(input.shape[1]) if 4 * number <= values]
    hint = f"fewer groups (norm=group, groups={fewer[-1]}) or another norm" if fewer else "another norm"
    each = "one value in each: it becomes 0" if values == num_groups else "two values in each: they become 1 and -1"
    message = (
        f"an input of shape {tuple(input.shape)} in {num_groups} groups has {each}, whatever the input, and no "
        f"gradient passes; take {hint}"
    )
    if len(input) == 1 and values == num_groups:
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)


def check_channels(input: Tensor, num_features: int, channel_dim: int = 1) -> None:
    """Raise `ValueError` or `TypeError` unless `input` is floating point with `num_features` channels in place."""
    if not isinstance(input, Tensor) or input.layout is not torch.strided or input.is_nested:
        raise TypeError(f"expected a dense tensor, got {_kind(input)}")
    if input.dim() < 2:
        raise ValueError(f"expected an input (N, C) or (N, C, *spatial), got shape {tuple(input.shape)}")
    if input.shape[channel_dim] != num_features:
        raise ValueError(
            f"expected {num_features} channels in dimension {channel_dim}, got shape {tuple(input.shape)}; build the "
            f"layer with num_features={input.shape[channel_dim]} or move the channels to dimension {channel_dim}"
        )
    if not input.is_floating_point() or input.element_size() < 2:  # no arithmetic is there for float8
        raise TypeError(f"expected a floating-point input, got {input.dtype}; convert it with .float()")


def _kind(value: Any) -> str:
    """What is given instead of a dense tensor, and how to make one of it."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}; convert it with torch.as_tensor"
    if value.is_nested:
        return "a nested one; convert it with to_padded_tensor, and give a mask= to layers that take one"
    return f"one with layout={value.layout}; convert it with to_dense"
