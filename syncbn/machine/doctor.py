"""`syncbn.doctor`: facts, proof and times of this machine, on its own ranks or on those of a launcher."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from syncbn.launch.world import World, current_world
from syncbn.machine import facts
from syncbn.machine.report import DoctorReport, Finding, Timing
from syncbn.norm.core.exchange import describe

LOST_S = 30.0  # after this time a missing rank counts as lost


def doctor(
    *, model: str | None = None, images: int | None = None, ranks: int | None = None, seconds: float = 60.0
) -> DoctorReport:
    """Report on this machine: what it has, whether SyncBatchNorm is exact on it, and how long it takes.

    The proof compares outputs, gradients and running statistics with one process in float64 that sees the batches of
    all ranks: fp32, bf16 and fp16, both memory formats, unequal and empty ranks, fused, checkpointed, compiled, second
    derivatives. Without a launcher it starts its own ranks: gloo on CPU and, where there are GPUs, NCCL with one rank
    per GPU. Under torchrun or srun every rank calls it, and it uses those ranks.

    Args:
        model: a network of `syncbn.models`, such as `"resnet50"`, to forecast the messages' share of its step.
        images: images per rank for `model`; None for 32 on a GPU and 2 on CPU.
        ranks: number of ranks to start on CPU without a launcher; None for 2.
        seconds: approximate time limit; the report lists what was skipped for it.

    Returns:
        The report, the same on every rank: `report.ok`, `report.to_json()`, `report.to_markdown()`.

    Raises:
        ValueError: an unknown model; numbers below 1.
    """
    if model is not None:
        from syncbn.machine.forecast import network

        network(model)
    for name, value in (("images", images), ("ranks", ranks), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be at least 1, got {value}")
    report = DoctorReport(facts.versions(), facts.devices(), facts.kernels())
    deadline = time.monotonic() + seconds
    world = current_world()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if world.world_size > 1:
        _add(report, _among(world, gpus, model, images, deadline))
        return report
    if gpus:
        _add(report, _on_own_ranks("cuda", gpus, model, images, seconds * 0.7))
        model = None  # forecast only on the GPUs
    _add(report, _on_own_ranks("cpu", ranks or 2, model, images, max(deadline - time.monotonic(), 5.0)))
    return report


def examine(device: torch.device, model: str | None, images: int | None, deadline: float) -> dict[str, Any]:
    """Examine the machine as one rank of the default group; every rank calls it. Returns plain values.

    Args:
        device: this rank's device.
        model: see `doctor`.
        images: see `doctor`.
        deadline: end of the proof, in `time.monotonic` seconds.
    """
    from syncbn.machine import times
    from syncbn.machine.forecast import forecast
    from syncbn.machine.proof import prove

    group = dist.group.WORLD
    assert group is not None
    place = f"{device.type}, {dist.get_world_size()} rank(s), {dist.get_backend()}"
    images = images or (32 if device.type == "cuda" else 2)
    proof = list(prove(place, device, deadline))
    if any(finding.problem for finding in proof):  # the ranks may be out of step
        return {"place": place, "exchange": "", "proof": [dataclasses.asdict(finding) for finding in proof]}
    messages = list(times.messages(place, device))
    layers = list(times.layers(place, device, images))
    found: dict[str, Any] = {
        "place": place,
        "exchange": describe(group, torch.zeros(1, device=device)),
        "proof": [dataclasses.asdict(finding) for finding in proof],
        "times": [dataclasses.asdict(timing) for timing in (*messages, *layers)],
    }
    if model is not None:
        found["forecast"] = forecast(model, images, device, dist.get_world_size(), messages)
    return found


def _add(report: DoctorReport, found: Mapping[str, Any]) -> None:
    report.proof += [Finding(**finding) for finding in found["proof"]]
    report.times += [Timing(**timing) for timing in found.get("times", [])]
    report.forecast |= found.get("forecast", {})
    if found.get("exchange"):
        report.exchange[found["place"]] = found["exchange"]


def _among(world: World, gpus: int, model: str | None, images: int | None, deadline: float) -> Mapping[str, Any]:
    """Examine the machine with the launcher's ranks."""
    device = torch.device("cuda", world.local_rank) if world.local_rank < gpus else torch.device("cpu")
    ours = not dist.is_initialized()
    if ours:
        _meet(device, world)
    found = examine(device, model, images, deadline)
    if ours:
        dist.barrier()
        dist.destroy_process_group()
    return found


def _meet(device: torch.device, world: World) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for name, value in (("RANK", world.rank), ("WORLD_SIZE", world.world_size), ("LOCAL_RANK", world.local_rank)):
        os.environ.setdefault(name, str(value))
    if "MASTER_ADDR" not in os.environ:  # started by srun
        os.environ["MASTER_ADDR"] = _first_node(os.environ)
        os.environ["MASTER_PORT"] = str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=LOST_S))


def _first_node(environ: Mapping[str, str]) -> str:
    """First host of SLURM's node list, `node[3-5,9]` or `a,b`."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST") or "127.0.0.1"
    name, bracket, numbers = nodes.partition("[")
    if not bracket:
        return nodes.split(",")[0]
    return nodes.split(",")[0] if "," in name else name + numbers.split("]")[0].split(",")[0].split("-")[0]


def _on_own_ranks(kind: str, ranks: int, model: str | None, images: int | None, seconds: float) -> Mapping[str, Any]:
    """Start ranks on this machine and read rank 0's findings."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work.json")
        work.write_text(json.dumps({"kind": kind, "model": model, "images": images, "seconds": seconds}))
        command = [sys.executable, "-m", "syncbn.machine.rank", folder, str(ranks)]
        environ = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        processes = [
            subprocess.Popen([*command, str(rank)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for rank in range(ranks)
        ]
        patience = time.monotonic() + seconds + 2 * LOST_S
        errors = []
        try:
            for process in processes:
                _, error = process.communicate(timeout=max(patience - time.monotonic(), 1.0))
                if process.returncode:
                    errors.append(error.decode(errors="replace"))
        except subprocess.TimeoutExpired:
            errors.append(f"the ranks didn't end within {seconds + 2 * LOST_S:.0f} s")
        finally:
            for process in processes:
                process.kill()
                process.wait()
        answer = Path(folder, "answer.json")
        if answer.is_file():
            return json.loads(answer.read_text())
    why = next((line for line in reversed("\n".join(errors).splitlines()) if line.strip()), "no rank said why")
    return {"proof": [dataclasses.asdict(Finding(f"{kind}, {ranks} rank(s)", "all", None, 0.0, 0.0, problem=why))]}
