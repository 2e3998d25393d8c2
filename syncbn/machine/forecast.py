"""Cost of synchronization for a model: message times relative to its step time on this machine."""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from syncbn.machine.report import Timing
from syncbn.machine.scaling import GPUS_A_NODE, largest_group, step_cost
from syncbn.norm.core.compat import BatchNormBase
from syncbn.norm.core.options import suggest

ENOUGH_SAMPLES = 32  # per group; more samples change the statistics little
BUDGET = 0.05  # share of a step
_WORLDS = (8, 64, 512, 4096)
_MODULES = ("resnet", "inception", "fcn", "deep", "dcgan", "vit")


def network(name: str) -> Callable[..., nn.Module]:
    """Function or class of `syncbn.models` that builds the network with this name.

    Raises:
        ValueError: an unknown name.
    """
    modules = [importlib.import_module(f"syncbn.models.{module}") for module in _MODULES]
    found = {name: value for module in modules for name, value in _networks(module).items()}
    if name not in found:
        raise ValueError(f"model={name}: no such network; {suggest(name, found)}")
    return found[name]


def forecast(model: str, images: int, device: torch.device, ranks: int, messages: Sequence[Timing]) -> dict[str, Any]:
    """Forecast a step's time, the messages' share of it, and useful group sizes.

    Args:
        model: a name for `network`.
        images: images per rank and step.
        device: this rank's device.
        ranks: number of ranks in `messages`.
        messages: message times from `syncbn.machine.times.messages`.
    """
    net = network(model)().to(device)
    channels = [module.num_features for module in net.modules() if isinstance(module, BatchNormBase)]
    step_s = _step_seconds(net, images, device)
    found: dict[str, Any] = {
        "model": model,
        "norms": len(channels),
        "images a rank": images,
        "seconds a step here, unsynchronized": round(step_s, 4),
    }
    if messages:
        share = _seconds_here(channels, messages) / step_s
        found[f"messages' share of a step here, {ranks} ranks"] = f"{100 * share:.1f} %"
    if device.type == "cuda":
        for gpus in _WORLDS:
            cost = step_cost("ours", gpus, channels)
            shares = (f"{100 * seconds / step_s:.1f}" for seconds in (cost.low, cost.high))
            found[f"messages' share of a step, {gpus} GPUs"] = f"{' to '.join(shares)} %, by NCCL's model"
    found["recommended sync_group"] = _recommended(images, step_s, channels, device)
    return found


def _recommended(images: int, step_s: float, channels: Sequence[int], device: torch.device) -> str:
    if images >= ENOUGH_SAMPLES:
        return f'1, or norm="batch": {images} images a rank are enough for the statistics'
    needed = -(-ENOUGH_SAMPLES // images)
    if device.type != "cuda":
        return f"{needed} ranks or more (for {ENOUGH_SAMPLES} images); world where that costs little, as on one machine"
    affordable = largest_group(BUDGET, step_s, channels)
    if needed <= GPUS_A_NODE:
        group = f'"node" ({GPUS_A_NODE} GPUs, {GPUS_A_NODE * images} images)'
    else:
        group = f"{needed} GPUs ({needed * images} images)"
    return f"{group}; up to {affordable} GPUs cost at most {BUDGET:.0%} of a step"


def _seconds_here(channels: Sequence[int], messages: Sequence[Timing]) -> float:
    """Time of a step's messages, interpolated between the shortest and the longest that were timed."""
    by_numbers = sorted((int(t.name.split(" of ")[1].split()[0]), t.milliseconds) for t in messages)
    # The fastest exchange for each size.
    fastest = {numbers: min(ms for n, ms in by_numbers if n == numbers) for numbers, _ in by_numbers}
    (few, short), *_, (many, long) = fastest.items()
    per_number = (long - short) / (many - few)
    forward = sum(short + per_number * (2 * c + 1 - few) for c in channels)
    backward = sum(short + per_number * (2 * c - few) for c in channels)
    return 1e-3 * max(forward + backward, 0.0)


def _step_seconds(net: nn.Module, images: int, device: torch.device) -> float:
    """Forward and backward time, in mixed precision on a GPU: median of three after a warm-up."""
    x = torch.randn(images, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = net(x)
        output.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _networks(module: ModuleType) -> dict[str, Any]:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        name: value
        for name, value in public.items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and name.islower()
    }
