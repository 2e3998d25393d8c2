"""Each norm's compute and communication, from a trace."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.autograd import DeviceType

from syncbn.training import NormProfiler
from syncbn.training.norm_times import NormTime, norm_times, table
from tests.ranks import Ranks
from tests.training import fits

NORMS = ["net.bn1", *(f"net.layer{i}.{j}.bn{k}" for i in range(1, 5) for j in range(2) for k in (1, 2))]
NORMS += [f"net.layer{i}.0.downsample.1" for i in (2, 3, 4)]


def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CPU) -> Any:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), device_type=device)


def test_times_are_those_of_the_ranges_and_of_the_messages_in_them() -> None:
    events = [
        event("norm backward: b", 0, 2000),  # of the step before
        event("norm forward: a", 10_000, 14_000),
        event("c10d::allreduce_", 11_000, 11_500),
        event("gloo:all_reduce", 11_400, 13_000),  # 2 ms together
        event("norm forward: a", 10_000, 14_000, DeviceType.CUDA),
        event("aten::add", 13_000, 13_500),
        event("norm forward: b", 15_000, 16_000),
        event("gloo:all_reduce", 14_500, 15_500),  # began elsewhere
        event("nccl:all_reduce", 15_800, 17_000),  # ends elsewhere
        event("norm backward: a", 20_000, 21_000),
        event("norm backward: a", 22_000, 23_000),  # a layer of two nodes
        event("norm forward: a", 30_000, 31_000),
    ]
    assert norm_times(reversed(events)) == [
        NormTime("a", 2, pytest.approx(3), pytest.approx(2), pytest.approx(2), pytest.approx(0)),
        NormTime("b", 1, pytest.approx(0.8), pytest.approx(0.2), pytest.approx(2), pytest.approx(0)),
    ]
    lines = [line.split() for line in table(norm_times(events)).splitlines()]
    assert lines[1:] == [
        ["a", "1.500", "1.000", "1.000", "0.000"],
        ["b", "0.800", "0.200", "2.000", "0.000"],
        ["all", "2.300", "1.200", "3.000", "0.000"],
    ]


def fit(folder: Path, batch_size: int) -> list[str]:
    """Fit; returns the names of modules that still have a hook of ours."""
    with fits.launched():
        module = fits.task()
        run = fits.trainer(
            max_epochs=1,
            limit_train_batches=5,
            limit_val_batches=0,
            default_root_dir=folder,
            callbacks=[NormProfiler(folder)],
            profiler=PyTorchProfiler(dirpath=folder, filename="operations"),
        )
        run.fit(module, fits.digits(batch_size=batch_size))
        return [name for name, layer in module.named_modules() if layer._forward_pre_hooks or layer._forward_hooks]


def rows(folder: Path) -> dict[str, dict[str, float]]:
    with (folder / "norm_times.csv").open(newline="") as file:
        return {row.pop("layer"): {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)}


def check(folder: Path, communicates: bool) -> None:
    times = rows(folder)
    assert sorted(times) == sorted(NORMS)
    assert next(iter(times)) == "net.bn1"
    for row in times.values():
        assert row["calls"] == 3
        for direction in ("forward", "backward"):
            assert row[f"{direction}_compute_ms"] > 0
            assert (row[f"{direction}_communication_ms"] > 0) == communicates


@pytest.mark.distributed
def test_every_norm_computes_and_communicates_on_two_ranks(ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    assert ranks(2).run(fit, tmp_path, 16) == [[], []]

    check(tmp_path, communicates=True)
    traces = list(tmp_path.glob("*.pt.trace.json"))
    assert len(traces) == 2
    for trace in traces:
        names = {entry.get("name") for entry in json.loads(trace.read_text())["traceEvents"]}
        assert names >= {f"norm {direction}: {layer}" for direction in ("forward", "backward") for layer in NORMS}


def test_alone_nothing_is_communicated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 32)

    check(tmp_path, communicates=False)
    printed = capsys.readouterr().out
    assert str(tmp_path / "norm_times.csv") in printed
    assert all(layer in printed for layer in NORMS)


def test_another_profiler_is_refused() -> None:
    with (
        fits.launched(),
        pytest.raises(MisconfigurationException, match=r"add debug=profiler, .* got PassThroughProfiler"),
    ):
        fits.trainer(max_epochs=1, callbacks=[NormProfiler()]).fit(fits.task(), fits.digits(32))


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule will be overridden")
def test_too_few_steps_for_a_trace_are_told(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(dirpath=tmp_path, filename="operations")
    with fits.launched():
        run = fits.trainer(
            max_epochs=1,
            limit_train_batches=3,
            limit_val_batches=0,
            callbacks=[NormProfiler(tmp_path)],
            profiler=profiler,
        )
        with pytest.warns(UserWarning, match="no trace of a norm in training: the profiler needs 5 training batches"):
            run.fit(fits.task(), fits.digits(160))
    assert not (tmp_path / "norm_times.csv").exists()
