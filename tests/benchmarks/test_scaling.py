"""The scaling model recovers known parameters, and the command that writes its page runs."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.layers import resnet50_shapes
from benchmarks.scaling.command import write
from benchmarks.scaling.model import Costs, Point, fit, predict, relative_error
from syncbn.machine.scaling import Kind, largest_group, nccl_seconds, resnet50_step, step_cost

KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather")
WORLDS = (2, 4, 8, 16)
SIZES = tuple(2**k for k in range(8, 20))
CORES = 2
microseconds = st.floats(0.1, 1000).map(lambda value: 1e-6 * value)


def ring_seconds(costs: Costs, kind: Kind, ranks: int, size: int) -> float:
    """Simulate a ring step by step: every rank passes on a part of the message, and ranks of a core take turns."""
    part = size / ranks if kind == "all_reduce" else size
    passes = 2 if kind == "all_reduce" else 1
    elapsed = costs.base
    for _ in range(passes * (ranks - 1)):
        elapsed += costs.latency + part * costs.per_byte
    return elapsed * max(1, ranks / CORES)


def points(costs: dict[Kind, Costs], noise: float = 0) -> list[Point]:
    rng = np.random.default_rng(0)
    return [
        Point(kind, ranks, size, ring_seconds(costs[kind], kind, ranks, size) * float(rng.lognormal(0, noise)))
        for kind in KINDS
        for ranks in WORLDS
        for size in SIZES
    ]


@given(microseconds, microseconds, st.floats(0.01, 10), microseconds, microseconds, st.floats(0.01, 10))
def test_the_fit_finds_the_parameters_that_made_the_data(
    base: float, latency: float, nanoseconds: float, base_2: float, latency_2: float, nanoseconds_2: float
) -> None:
    true = {
        "all_reduce": Costs(base, latency, 1e-9 * nanoseconds),
        "all_gather": Costs(base_2, latency_2, 1e-9 * nanoseconds_2),
    }
    found = fit(points(true), CORES)
    for point in points(true):
        assert relative_error(found, point, CORES) == pytest.approx(0, abs=1e-6)
    for kind in KINDS:
        assert found[kind].latency == pytest.approx(true[kind].latency, rel=1e-4)
        assert found[kind].per_byte == pytest.approx(true[kind].per_byte, rel=1e-4)


def test_noise_moves_the_fit_little_and_unseen_ranks_are_predicted() -> None:
    true = {"all_reduce": Costs(2e-5, 3e-5, 1e-10), "all_gather": Costs(1e-5, 4e-5, 2e-10)}
    noisy = points(true, noise=0.1)
    found = fit([point for point in noisy if point.ranks < 16], CORES)
    for point in points(true):
        assert abs(relative_error(found, point, CORES)) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_time_grows_with_ranks_and_bytes(kind: Kind) -> None:
    costs = Costs(1e-5, 2e-5, 1e-10)
    for sizes in (SIZES, SIZES[::-1]):
        times = [[predict(costs, kind, ranks, size, CORES) for size in sorted(sizes)] for ranks in WORLDS]
        assert (np.diff(times, axis=0) > 0).all()
        assert (np.diff(times, axis=1) > 0).all()
    assert predict(costs, kind, 8, 1024, cores=8) == predict(costs, kind, 8, 1024, cores=16)  # a core for each


def test_nccls_model_gives_what_nccl_has_logged() -> None:
    """https://github.com/NVIDIA/nccl/issues/1453, 2 nodes of 8 GPUs: µs by bytes."""
    for size, microseconds in {16: 25.201847, 256: 25.229528, 4096: 25.874907, 8192: 26.549810}.items():
        assert nccl_seconds("all_reduce", 16, size) == pytest.approx(1e-6 * microseconds, rel=1e-3)


def test_costs_on_gpus_grow_with_their_number_and_a_gather_grows_faster() -> None:
    norms = [shape[1] for shape in resnet50_shapes(1)]
    assert len(norms) == 53
    worlds = [2**k for k in range(1, 13)]
    ours, gather = ([step_cost(design, gpus, norms) for gpus in worlds] for design in ("ours", "gather"))
    for costs in (ours, gather):
        assert (np.diff([cost.low for cost in costs]) > 0).all()
        assert all(cost.low < cost.middle < cost.high for cost in costs)
    ratios = [b.low / a.low for a, b in zip(ours, gather, strict=True)]
    assert (np.diff(ratios) > 0).all()
    assert ratios[0] < 1 < ratios[3] < 10 < ratios[-1]  # a ring of 2 gathers in half the steps; one of 4,096 doesn't


def test_a_group_within_a_budget_is_the_largest() -> None:
    norms = [shape[1] for shape in resnet50_shapes(1)]
    for budget in (0.01, 0.05, 0.1, 0.3):
        group = largest_group(budget, resnet50_step(256), norms)
        assert step_cost("ours", group, norms).high <= budget * resnet50_step(256)
        assert group == 4096 or step_cost("ours", 2 * group, norms).high > budget * resnet50_step(256)


@pytest.mark.distributed
def test_the_command_writes_its_page(tmp_path: Path) -> None:
    channels = (64, 128, 256, 512, 1024, 2048)  # those of a ResNet-50
    answer = write(tmp_path, worlds=(2,), channels=channels)
    page = (tmp_path / "scaling.md").read_text()
    assert answer.endswith(str(tmp_path / "scaling.md"))
    assert "{" not in page
    for link in re.findall(r"\]\((scaling/[^)]+)\)", page):
        assert (tmp_path / link).stat().st_size > 0
    with (tmp_path / "scaling" / "measured.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(channels)
    assert sum(row["in_fit"] == "False" for row in rows) == 4 * len(channels) // 2
    assert all(0 < float(row["q1_s"]) <= float(row["median_s"]) <= float(row["q3_s"]) for row in rows)
    forward = {row["design"]: row for row in rows if (row["direction"], row["channels"]) == ("forward", "512")}
    assert (forward["ours"]["collective"], forward["ours"]["bytes"]) == ("all_reduce", str(8 * 1025))
    assert (forward["gather"]["collective"], forward["gather"]["bytes"]) == ("all_gather", str(4 * 1025))
    assert len(re.findall(r"^\| [\d,]+ \| [\d.]+ \([\d.]+-[\d.]+\) \|", page, re.MULTILINE)) == 10  # 8 to 4,096 GPUs
