"""Cost of the messages of synchronized batch normalization on GPUs, by NCCL's own latency model.

Formulas and parameters are those by which NCCL chooses its algorithms: `baseLat` and `hwLat` in src/graph/tuning.cc of
NVIDIA/nccl at commit b6475625, for the low-latency protocol, which it uses for messages as short as a norm's. Its log
in github.com/NVIDIA/nccl/issues/1453 (2 nodes of 8 H100) shows 25.20 µs at 16 bytes, which `nccl_seconds` gives, and
26.55 µs at 8,192 bytes, from which the bandwidth is derived.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, sqrt
from typing import Literal

Kind = Literal["all_reduce", "all_gather"]

GPUS_A_NODE = 8
BASE = {"tree": 6.8e-6, "ring": 6.6e-6}
NVLINK = {"tree": 0.6e-6, "ring": 0.6e-6}
NETWORK = {"tree": 5.0e-6, "ring": 2.7e-6}
NETWORK_POST = 1.0e-6  # for each ring step between nodes; for Intel CPUs
PER_BYTE = (26.549810e-6 - 25.201847e-6) / (8192 - 16)

# Measured over modelled time, from the same log: 75.38 µs at 4,096 bytes, where the model says 25.87.
SLOWEST = 75.38 / 25.874907

RESNET50_IMAGES_A_SECOND = 2470  # one A100, mixed precision, batch 256: NVIDIA/DeepLearningExamples, ResNet50 v1.5

CONVOLUTIONS = 0.5  # of a step's time, assumed: norms, activations and sums, which wait for memory, take the rest


@dataclass(frozen=True)
class StepSeconds:
    """Seconds per step: low by NCCL's model, high at `SLOWEST` times that, and their geometric mean."""

    low: float

    @property
    def high(self) -> float:
        """Upper bound."""
        return self.low * SLOWEST

    @property
    def middle(self) -> float:
        """Geometric mean of both bounds."""
        return self.low * sqrt(SLOWEST)


def steps(kind: Kind, ranks: int) -> int:
    """Number of sequential steps of a ring."""
    return (ranks - 1) * (2 if kind == "all_reduce" else 1)


def nccl_seconds(kind: Kind, gpus: int, size: int) -> float:
    """Seconds of one collective of `size` bytes per GPU, by the fastest of NCCL's algorithms, on full nodes."""
    if gpus == 1:
        return 0.0
    nodes = max(1, gpus // GPUS_A_NODE)
    if kind == "all_gather":
        return _ring(kind, gpus, nodes) + (gpus - 1) * size * PER_BYTE
    return min(_ring(kind, gpus, nodes), _tree(gpus, nodes)) + size * PER_BYTE


def step_cost(design: str, gpus: int, channels: Sequence[int]) -> StepSeconds:
    """Cost of a training step's collectives, one forward and one backward per norm, without overlap."""
    total = 0.0
    for count in channels:
        if design == "ours":
            total += nccl_seconds("all_reduce", gpus, 8 * (2 * count + 1)) + nccl_seconds(
                "all_reduce", gpus, 16 * count
            )
        else:
            total += nccl_seconds("all_gather", gpus, 4 * (2 * count + 1)) + nccl_seconds("all_reduce", gpus, 8 * count)
    return StepSeconds(total)


@dataclass(frozen=True)
class Overlapped:
    """Seconds per step that no weight gradient hides; the bounds are those of the messages, as in `StepSeconds`."""

    low: float
    middle: float
    high: float


def exposed(messages: Sequence[float], hiding: Sequence[float]) -> float:
    """Seconds of a backward pass that its messages take longer than what hides them.

    Args:
        messages: seconds of each.
        hiding: seconds of the weight gradients that are computed while it is under way.
    """
    return sum(max(0.0, message - work) for message, work in zip(messages, hiding, strict=True))


def overlapped_cost(gpus: int, channels: Sequence[int], hiding: Sequence[float]) -> Overlapped:
    """Cost of a training step's collectives with overlap: all of the forward ones, what is exposed of the others."""
    forward = sum(nccl_seconds("all_reduce", gpus, 8 * (2 * count + 1)) for count in channels)
    backward = [nccl_seconds("all_reduce", gpus, 16 * count) for count in channels]
    costs = (
        factor * forward + exposed([factor * seconds for seconds in backward], hiding)
        for factor in (1.0, sqrt(SLOWEST), SLOWEST)
    )
    return Overlapped(*costs)


def weight_gradient_seconds(step_s: float, shares: Sequence[float]) -> list[float]:
    """Seconds of the weight gradients of layers with these shares of a network's multiplications.

    Forward pass, input gradients and weight gradients multiply equally often; `CONVOLUTIONS` is the part of the step
    that they take.
    """
    return [CONVOLUTIONS * step_s / 3 * share for share in shares]


def resnet50_step(images: int) -> float:
    """Seconds of a training step without synchronization, at the published rate (optimistic for small batches)."""
    return images / RESNET50_IMAGES_A_SECOND


def largest_group(budget: float, step_s: float, channels: Sequence[int], most: int = 4096) -> int:
    """Largest power of two of GPUs that costs at most `budget` of a step, by the upper bound."""
    largest = 1
    while 2 * largest <= most and step_cost("ours", 2 * largest, channels).high <= budget * step_s:
        largest *= 2
    return largest


def _ring(kind: Kind, gpus: int, nodes: int) -> float:
    every = steps(kind, gpus)
    between = 0 if nodes == 1 else 2 * nodes if kind == "all_reduce" else nodes - 1
    within = NVLINK["ring"] if nodes == 1 else max(NVLINK["ring"], NETWORK_POST)
    return BASE["ring"] + (every - between) * within + between * NETWORK["ring"]


def _tree(gpus: int, nodes: int) -> float:
    return BASE["tree"] + 2 * ((gpus // nodes - 1) * NVLINK["tree"] + int(log2(nodes)) * NETWORK["tree"])
