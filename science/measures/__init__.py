"""Measures of a run: functions from a `Setting` to metrics by name, one per file."""

import importlib
from collections.abc import Callable
from typing import Any

from syncbn.norm.core.options import suggest

_PLACES = {
    "federated": "federated:federated",
    "inputs": "inputs:inputs",
    "landscape": "landscape:landscape",
    "recalibration": "recalibration:recalibration",
    "samples": "samples:samples",
    "shift": "shift:shift",
    "slimming": "slimming:slimming",
    "statistics": "statistics:statistics",
    "steps": "steps:steps",
    "sync_every": "sync_every:sync_every",
    "times": "times:times",
    "train": "training:train",
}


def find(name: str) -> Callable[[Any], dict[str, float]]:
    """Find a measure by name.

    Raises:
        ValueError: an unknown measure.
    """
    if name not in _PLACES:
        raise ValueError(f"unknown measure {name!r}; {suggest(name, _PLACES)}")
    module, _, function = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"science.measures.{module}"), function)
