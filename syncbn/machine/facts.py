"""Installed versions and hardware."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.kernels.native import library

_PACKAGES = ("syncbn", "torch", "triton", "lightning", "torchmetrics", "hydra-core", "wandb", "numpy", "torchvision")


def versions() -> dict[str, str | None]:
    """Versions of Python, of packages, and of the libraries that torch was built with."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["torch"] = torch.__version__  # includes the build, unlike some metadata
    found["CUDA of torch"] = torch.version.cuda
    if torch.cuda.is_available():
        found["cuDNN"] = str(torch.backends.cudnn.version())
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def devices() -> list[str]:
    """CPUs available to this process, and GPUs, one line each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"{_processor()}, {platform.system()} {platform.machine()}, {cores} cores for this process"]
    if not torch.cuda.is_available():
        return [*lines, "no GPU that torch can use"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        lines.append(
            f"GPU {index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability "
            f"{facts.major}.{facts.minor}"
        )
    return lines


def kernels() -> dict[str, str]:
    """Kernels that serve a float32 tensor on each kind of device, and why not faster ones."""
    found = {"cpu": _kernels_of("cpu")}
    built = library()
    if isinstance(built, str):
        found["cpu"] += f"; not the C++ kernels: {built.splitlines()[0]}"
    if torch.cuda.is_available():
        found["cuda"] = _kernels_of("cuda")
        if not found["cuda"].startswith("triton"):
            found["cuda"] += "; the Triton kernels are asked for by SYNCBN_KERNELS=triton"
    return found


def _kernels_of(device: str) -> str:
    return kernels_for(torch.zeros(1, 1, device=device)).name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
