"""Latency-bandwidth model of collectives, and the fit of its parameters to measurements.

A ring sends in steps, each of which waits for the one before (Thakur, Rabenseifner & Gropp, Optimization of Collective
Communication Operations in MPICH, 2005). With p ranks, a message of m bytes and k cores,

    seconds = max(1, p / k) · (base + steps · latency + traffic · per_byte)

    all-reduce: steps = 2(p - 1), traffic = 2(p - 1)/p · m        all-gather: steps = p - 1, traffic = (p - 1) · m

where m is a rank's contribution. Ranks that share a core take turns in every step, so all takes p / k times as long;
with one core per rank the factor is 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from scipy.optimize import nnls

from syncbn.machine.scaling import Kind, steps


@dataclass(frozen=True)
class Point:
    """One measurement: a collective of `size` bytes per rank between `ranks`, and its seconds."""

    kind: Kind
    ranks: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """Costs of one kind of collective: seconds per call, per step, and per byte that a rank sends."""

    base: float
    latency: float
    per_byte: float


def traffic(kind: Kind, ranks: int, size: int) -> float:
    """Bytes that a rank sends."""
    return (ranks - 1) * size * (2 / ranks if kind == "all_reduce" else 1)


def predict(costs: Costs, kind: Kind, ranks: int, size: int, cores: int) -> float:
    """Seconds of one collective."""
    return float(np.dot(_terms(kind, ranks, size, cores), astuple(costs)))


def fit(points: Iterable[Point], cores: int) -> dict[Kind, Costs]:
    """Fit non-negative costs of each kind by least squares of relative errors."""
    by_kind: dict[Kind, list[Point]] = {}
    for point in points:
        by_kind.setdefault(point.kind, []).append(point)
    return {kind: _fit(measured, cores) for kind, measured in by_kind.items()}


def relative_error(costs: dict[Kind, Costs], point: Point, cores: int) -> float:
    """Relative error of the prediction; negative if it is too short."""
    return predict(costs[point.kind], point.kind, point.ranks, point.size, cores) / point.seconds - 1


def _fit(points: Sequence[Point], cores: int) -> Costs:
    terms = np.array([_terms(point.kind, point.ranks, point.size, cores) for point in points])
    seconds = np.array([point.seconds for point in points])
    relative = terms / seconds[:, None]
    scale = np.abs(relative).max(axis=0)  # bytes and calls differ by many orders of magnitude
    solution, _ = nnls(relative / scale, np.ones(len(points)))
    return Costs(*(solution / scale).tolist())


def _terms(kind: Kind, ranks: int, size: int, cores: int) -> tuple[float, float, float]:
    share = max(1.0, ranks / cores)
    return share, share * steps(kind, ranks), share * traffic(kind, ranks, size)
