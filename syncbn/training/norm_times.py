"""Compute and communication time of each norm layer, from the ranges of a trace."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, and not in __all__

FORWARD, BACKWARD = "norm forward: ", "norm backward: "  # prefixes of range names, before the layer's name
# Prefixes of torch's events (the call, and the work it waits for) and of ours.
_COMMUNICATION = ("c10d::", "gloo:", "nccl", "mpi:", "syncbn::one_shot")


@dataclass
class NormTime:
    """Times of one layer over all traced steps, in milliseconds on the host's clock."""

    layer: str
    calls: int = 0
    forward_compute_ms: float = 0.0
    forward_communication_ms: float = 0.0
    backward_compute_ms: float = 0.0
    backward_communication_ms: float = 0.0


def norm_times(events: Iterable[Any]) -> list[NormTime]:
    """Compute a row for each layer with a range in a profiler's events, in the order of forward passes.

    Events that start inside a layer's range belong to the layer; DDP's concurrent messages don't.
    """
    events = list(events)
    messages = [event.time_range for event in events if event.name.startswith(_COMMUNICATION)]
    times: dict[str, NormTime] = {}
    # On a GPU the range appears again as the device's.
    ranges = [e for e in events if e.name.startswith((FORWARD, BACKWARD)) and e.device_type == DeviceType.CPU]
    for event in sorted(ranges, key=lambda event: (event.name.startswith(BACKWARD), event.time_range.start)):
        forward = event.name.startswith(FORWARD)
        layer = event.name.removeprefix(FORWARD if forward else BACKWARD)
        row = times.setdefault(layer, NormTime(layer))
        begin, end = event.time_range.start, event.time_range.end
        communication = _union_us([(m.start, min(m.end, end)) for m in messages if begin <= m.start < end])
        compute = end - begin - communication
        if forward:
            row.calls += 1
            row.forward_compute_ms += compute / 1e3
            row.forward_communication_ms += communication / 1e3
        else:
            row.backward_compute_ms += compute / 1e3
            row.backward_communication_ms += communication / 1e3
    return list(times.values())


def table(rows: Iterable[NormTime]) -> str:
    """Format milliseconds per call, and their sum over layers."""
    rows = list(rows)
    width = max(len(name) for name in ("norm layer, ms a call", *(row.layer for row in rows)))
    lines = [f"{'norm layer, ms a call':<{width}}  forward: compute  communication  backward: compute  communication"]
    sums = [0.0] * 4
    for row in rows:
        values = [value / max(row.calls, 1) for value in astuple(row)[2:]]
        sums = [a + b for a, b in zip(sums, values, strict=True)]
        lines.append(_layer_row(row.layer, width, values))
    return "\n".join([*lines, _layer_row("all", width, sums)])


def _layer_row(name: str, width: int, values: Iterable[float]) -> str:
    columns = (f"{value:>{column}.3f}" for value, column in zip(values, (18, 15, 19, 15), strict=True))
    return f"{name:<{width}}{''.join(columns)}"


def _union_us(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals, since a call and its work overlap."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
