"""Comparison of SyncBatchNorm on this hardware with one float64 process that sees the batches of all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncbn.machine.report import Finding
from syncbn.norm.core.messages import first_line
from syncbn.norm.sync import SyncBatchNorm

CHANNELS, SIDE = 8, 6
# Tolerances relative to the largest expected value: the rounding error of each dtype.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Call = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One configuration of the layer to compare.

    Attributes:
        name: name in the report.
        dtype: dtype of the input.
        channels_last: whether the input is channels-last.
        call: computes a rank's output; by default the layer's forward.
        reference: the same operation on the float64 output of `F.batch_norm` for the whole batch.
        empty: whether the last rank has no samples.
        second: whether second derivatives are compared, too.
        options: options of the layer.
    """

    name: str
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    call: Call = lambda layer, x: layer(x)
    reference: Callable[[Tensor], Tensor] = lambda y: y
    empty: bool = False
    second: bool = False
    options: tuple[tuple[str, Any], ...] = ()


def cases() -> Iterator[Case]:
    """All cases, the cheap ones first."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels_last in (False, True):
            layout = "channels last" if channels_last else "contiguous"
            yield Case(f"{_NAMES[dtype]}, {layout}, unequal ranks", dtype, channels_last)
    yield Case("fp32, a rank without samples", empty=True)
    yield Case("fp64, second derivatives", torch.float64, second=True)
    for dtype in (torch.float32, torch.bfloat16):
        yield Case(
            f"{_NAMES[dtype]}, fused with ReLU",
            dtype,
            call=lambda layer, x: F.relu(layer(x)),
            reference=F.relu,
            options=(("fuse_activation", True),),
        )
    yield Case("fp32, checkpointed", call=lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    yield Case("fp32, compiled", call=_compiled)


def prove(place: str, device: torch.device, deadline: float) -> Iterator[Finding]:
    """Compare every case; all ranks of the default group call it, and all get the same findings.

    Args:
        place: place named in the report.
        device: this rank's device.
        deadline: time after which no case starts, in rank 0's `time.monotonic` seconds.
    """
    for case in cases():
        started = time.monotonic()
        if _any_rank(started > deadline, device, first_rank_decides=True):
            yield Finding(place, case.name, None, TOLERANCE[case.dtype], 0.0, skipped="no time left")
            continue
        error, problem, skipped = _attempt(case, device)
        elapsed = time.monotonic() - started
        yield Finding(place, case.name, error, TOLERANCE[case.dtype], round(elapsed, 3), problem, skipped)


def _attempt(case: Case, device: torch.device) -> tuple[float | None, str, str]:
    if case.call is _compiled and (why := _why_not_compiled(device)):
        return None, "", why
    try:
        error, problem = _compare(case, device), ""
    except Exception as found:  # any failure belongs in the report
        error, problem = None, f"{type(found).__name__}: {first_line(found)}"
    worst = torch.tensor([float("inf") if error is None else error], dtype=torch.float64, device=device)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    largest = float(worst)
    if largest == float("inf"):
        return None, problem or "it failed on another rank", ""
    if not largest <= (limit := TOLERANCE[case.dtype]):
        return largest, f"differs from one process by {largest:.1e}, and rounding explains {limit:.0e}", ""
    return largest, "", ""


def _compare(case: Case, device: torch.device) -> float:
    """Largest relative difference of outputs, gradients, statistics and, if requested, second derivatives."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    sizes = [1 + (2 * r) % 3 for r in range(ranks)]
    if case.empty:
        sizes[0], sizes[-1] = sizes[0] + 1, 0 if ranks > 1 else sizes[-1]
    if ranks == 1:
        sizes = [4]
    start = sum(sizes[:rank])
    share = slice(start, start + sizes[rank])
    x, dy, weight, bias = _batch(sum(sizes), case.dtype)

    layer = SyncBatchNorm(CHANNELS, **dict(case.options)).to(device, weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    mine = _as_stored(x[share].to(device), case.channels_last).requires_grad_()
    output = case.call(layer, mine)
    inputs = (mine, layer.weight, layer.bias)
    got = list(torch.autograd.grad(output, inputs, dy[share].to(output), create_graph=case.second))
    for i in (1, 2):
        got[i] = got[i].detach().double()
        dist.all_reduce(got[i])

    whole = x.double().requires_grad_()
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    mean, var = torch.zeros(CHANNELS, dtype=torch.float64), torch.ones(CHANNELS, dtype=torch.float64)
    expected = case.reference(F.batch_norm(whole, mean, var, weight, bias, training=True, momentum=0.1, eps=layer.eps))
    wanted = torch.autograd.grad(expected, (whole, weight, bias), dy.double(), create_graph=case.second)

    pairs = [
        (output, expected[share], expected),
        (got[0], wanted[0][share], wanted[0]),
        (got[1], wanted[1], wanted[1]),
        (got[2], wanted[2], wanted[2]),
        (layer.running_mean, mean, mean),
        (layer.running_var, var, var),
    ]
    if case.second:
        (ours,) = torch.autograd.grad(got[0].square().sum(), mine)
        (theirs,) = torch.autograd.grad(wanted[0].square().sum(), whole)
        pairs.append((ours, theirs[share], theirs))
    assert layer.num_batches_tracked is not None
    if (counted := int(layer.num_batches_tracked)) != 1:
        raise AssertionError(f"{counted} batches were counted, not 1")
    return max(_difference(*pair) for pair in pairs)


def _batch(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and dy of all ranks, γ and β, rounded to the layer's dtype and the same on every rank."""
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(count, CHANNELS, SIDE, SIDE, generator=random, dtype=torch.float64) + 1
    dy = torch.randn(count, CHANNELS, SIDE, SIDE, generator=random, dtype=torch.float64)
    weight, bias = (torch.randn(CHANNELS, generator=random, dtype=torch.float64) + shift for shift in (1, 0))
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return x.to(dtype), dy.to(dtype), weight.to(parameters), bias.to(parameters)


def _as_stored(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x.contiguous()


def _difference(got: Tensor | None, expected: Tensor, scale: Tensor) -> float:
    """Largest difference, relative to the largest expected value; NaN counts as infinite."""
    assert got is not None
    if not expected.numel():
        return 0.0
    apart = (got.detach().double().cpu() - expected.detach()).abs().max() / scale.detach().abs().max().clamp(min=1e-30)
    return float(apart) if apart.isfinite() else float("inf")


def _compiled(layer: nn.Module, x: Tensor) -> Tensor:
    torch.compiler.reset()
    compiled: Any = torch.compile(layer, fullgraph=True)
    return compiled(x)


def _why_not_compiled(device: torch.device) -> str:
    """Why torch.compile doesn't work at all on this machine; empty if it works on every rank."""
    why = ""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:
        why = f"torch.compile doesn't work here: {type(error).__name__}: {first_line(error)}"
    anywhere = _any_rank(bool(why), device)
    return why or ("torch.compile doesn't work on another rank" if anywhere else "")


def _any_rank(flag: bool, device: torch.device, first_rank_decides: bool = False) -> bool:
    votes = torch.tensor([float(flag and (not first_rank_decides or dist.get_rank() == 0))], device=device)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)
