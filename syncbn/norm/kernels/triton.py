"""Triton kernels, on CUDA, and on CPU by Triton's interpreter (TRITON_INTERPRET=1).

A sum over samples takes two kernels: programs sum their shares, and others merge them, in an order that depends only on
shapes and GPU. So results are bitwise reproducible, without atomic operations. The host never waits, and no launch
depends on values, so CUDA graphs can capture everything. Why they aren't the default:
docs/decisions/0016-triton-kernels.md.
"""

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from syncbn.norm.kernels import aten_cpu as cpu
from syncbn.norm.kernels import triton_programs as programs
from syncbn.norm.kernels.interface import PLAIN_TYPES, ChannelAffine, Kernels, in_memory
from syncbn.norm.kernels.plain import statistics_dtype

_DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"

_WARPS = 8
# A tile has two 16-byte loads per thread for each tensor.
_TILE_BYTES = 2 * 16 * 32 * _WARPS
# Width of a tile of rows, a cache line: less would waste bandwidth, more would leave few programs for small C.
_LINE_BYTES = 128
# Width of a tile of planes, unless there are too few planes to fill it.
_PLANE_BYTES = 1024
# Programs per multiprocessor. Summing programs keep their registers until the end: two always fit, and read ahead.
_SUMMING = 2
# For the others: whole waves, whether registers allow 2, 3, 4 or 6 at a time.
_WRITING = 12


def check_device() -> None:
    """Refuse a machine on which these kernels can't run."""
    if _DEVICE == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "SYNCBN_KERNELS=triton needs a CUDA device, and torch finds none: leave it unset, "
            "or set TRITON_INTERPRET=1 to try the kernels on CPU, slowly"
        )


class TritonKernels(Kernels):
    """Kernels over the programs of triton_programs.py."""

    name = "triton"

    def serves(self, *tensors: Tensor) -> bool:
        """Whether all are plain tensors in the device's memory."""
        return all(
            tensor.device.type == _DEVICE
            and type(tensor) in PLAIN_TYPES
            and tensor.layout is torch.strided
            and not tensor.is_neg()
            and (in_memory(tensor) or tensor.numel() == 0)
            for tensor in tensors
        )

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """See `Kernels`."""
        count = x.numel() // x.shape[1]
        mean, m2 = torch.empty(2, x.shape[1], dtype=torch.float64, device=x.device).unbind()
        if count == 0:
            return mean.zero_(), m2.zero_(), 0
        x = cpu.dense(x)
        parts = _sum_parts(programs.moments_parts, 4, x)
        _merge(programs.moments_merge, parts, mean, m2)
        return mean, m2, count

    def normalize(self, x: Tensor, affine: ChannelAffine) -> Tensor:
        """See `Kernels`."""
        return self.normalize_activate(x, affine, None, 1.0)

    def normalize_activate(self, x: Tensor, affine: ChannelAffine, residual: Tensor | None, slope: float) -> Tensor:
        """See `Kernels`."""
        x = cpu.dense(x)
        y = torch.empty_like(x)
        residual = None if residual is None else cpu.like(residual, x)
        per_channel = _dense(affine.mean, affine.var, affine.weight, affine.bias)
        activation = {"SLOPE": None if slope == 1 else float(slope)}
        _elementwise(programs.normalize, x, residual, *per_channel, y, EPS=affine.eps, **activation)
        return y

    def reduce_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = cpu.dense(x)
        return _sums(cpu.like(dy, x), None, None, x, affine, None)

    def reduce_grad_activate(
        self, dy: Tensor, y: Tensor, x: Tensor, affine: ChannelAffine, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        x = cpu.dense(x)
        dz = torch.empty_like(x)
        return *_sums(cpu.like(dy, x), cpu.like(y, x), dz, x, affine, float(slope)), dz

    def input_grad(self, dy: Tensor, x: Tensor, affine: ChannelAffine, mean_dy: Tensor, mean_dy_xhat: Tensor) -> Tensor:
        """See `Kernels`."""
        x = cpu.dense(x)
        dx = torch.empty_like(x)
        per_channel = _dense(affine.mean, affine.var, affine.weight, mean_dy, mean_dy_xhat)
        _elementwise(programs.input_grad, x, cpu.like(dy, x), *per_channel, dx, EPS=affine.eps)
        return dx


TRITON = TritonKernels()


def _sums(
    dy: Tensor, y: Tensor | None, dz: Tensor | None, x: Tensor, affine: ChannelAffine, slope: float | None
) -> tuple[Tensor, Tensor]:
    """Compute Σdz and Σdz·x̂, and fill `dz` if there is a slope."""
    mean, var, eps, _, _ = affine
    sums = torch.empty(2, x.shape[1], dtype=mean.dtype, device=x.device)
    if x.numel() == 0:
        sums.zero_()
        return sums[0], sums[1]
    parts = _sum_parts(programs.grad_parts, 2, x, dy, y, dz, mean.contiguous(), SLOPE=slope)
    _merge(programs.grad_merge, parts, var.contiguous(), sums, EPS=eps)
    return sums[0], sums[1]


def _sum_parts(kernel: Any, number: int, x: Tensor, *others: Tensor | None, **constants: Any) -> Tensor:
    """Compute `number` sums for each channel and each share of its samples, (number, C, splits).

    A program takes a group of channels and every `splits`-th tile of their samples.
    """
    channels = x.shape[1]
    rows, neighbours = _layout(x)
    outer, inner = (x.numel() // channels, channels) if rows else (x.shape[0], neighbours)
    tile = _tile(x, rows, outer, inner)
    groups = triton.cdiv(channels, tile["INNER"]) if rows else channels
    tiles = triton.cdiv(outer, tile["OUTER"]) * (1 if rows else triton.cdiv(inner, tile["INNER"]))
    splits = min(tiles, max(1, _SUMMING * _multiprocessors(x.device) // groups))
    parts = x.new_empty(number, channels, splits, dtype=statistics_dtype(x))
    sizes = outer, inner // tile["ALIGN"], channels, tiles
    _launch(kernel, (groups, splits), x, *others, parts, *sizes, **constants, **tile)
    return parts


def _merge(kernel: Any, parts: Tensor, *tensors: Tensor, **constants: Any) -> None:
    """Launch a program per channel that adds up its shares."""
    _, channels, splits = parts.shape
    _launch(kernel, (channels,), parts, *tensors, splits, **constants, SPLITS=triton.next_power_of_2(splits))


def _elementwise(kernel: Any, x: Tensor, *others: Tensor | None, **constants: Any) -> None:
    """Launch programs that each stride over a column of tiles."""
    if x.numel() == 0:
        return
    channels = x.shape[1]
    rows, neighbours = _layout(x)
    inner = channels if rows else neighbours
    outer = x.numel() // inner
    tile = _tile(x, rows, outer, inner)
    columns = triton.cdiv(inner, tile["INNER"])
    height = min(triton.cdiv(outer, tile["OUTER"]), triton.cdiv(_WRITING * _multiprocessors(x.device), columns))
    sizes = outer, inner // tile["ALIGN"], channels
    _launch(kernel, (columns, height), x, *others, *sizes, **constants, **tile)


def _launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any, **constants: Any) -> None:
    with torch.cuda.device_of(x):  # Triton launches on the current device
        kernel[grid](x, *arguments, **constants, num_warps=_WARPS, enable_fp_fusion=True)


def _layout(x: Tensor) -> tuple[bool, int]:
    """Whether channels are the innermost dimension of a dense tensor, and the number of a plane's values."""
    neighbours = math.prod(x.shape[2:])
    return neighbours == 1 or not x.is_contiguous(), neighbours


def _tile(x: Tensor, rows: bool, outer: int, inner: int) -> dict[str, Any]:
    """Constants of a kernel that processes an (outer, inner) matrix in tiles."""
    size = _TILE_BYTES // x.element_size()
    height = triton.next_power_of_2(outer)
    width = _LINE_BYTES // x.element_size() if rows else max(_PLANE_BYTES // x.element_size(), size // height)
    width = min(width, triton.next_power_of_2(inner))
    return {
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "ROWS": rows,
        "ALIGN": math.gcd(inner, 16),
        "OUTER": min(size // width, height),
        "INNER": width,
    }


def _dense(*per_channel: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in per_channel]


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
