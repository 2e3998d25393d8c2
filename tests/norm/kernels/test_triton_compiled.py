"""The Triton kernels, compiled for their target GPUs without a GPU."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")  # available only for Linux

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, CompiledKernel  # noqa: E402

from syncbn.norm.kernels import triton as kernels  # noqa: E402
from syncbn.norm.kernels.interface import ChannelAffine  # noqa: E402
from syncbn.norm.kernels.triton import TRITON  # noqa: E402

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}
# Shared memory of a multiprocessor, which must fit two summing programs.
SHARED = {80: 163 << 10, 90: 227 << 10}


def compile_for(architecture: int, kernel: Any, *arguments: Any, **constants: Any) -> CompiledKernel:
    """Compile as for a launch on that GPU: tensors' addresses, and possibly sizes, are divisible by 16."""
    types, fixed, divisible = {}, {}, {}
    for index, (name, value) in enumerate(zip(kernel.arg_names, [*arguments, *constants.values()], strict=True)):
        if index >= len(arguments) or value is None or (isinstance(value, int) and value == 1):
            types[name] = "constexpr"
            fixed[index,] = constants.get(name, value)
        else:
            types[name] = POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
            if isinstance(value, Tensor) or value % 16 == 0:
                divisible[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, fixed, divisible)
    options = {"num_warps": kernels._WARPS, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def step(x: Tensor) -> None:
    """Launch every kernel: a training step of batch normalization, with shortcut and ReLU and without."""
    channels = torch.ones(x.shape[1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    affine = ChannelAffine(channels, channels, 1e-5, channels, channels)
    TRITON.moments(x)
    TRITON.normalize(x, affine._replace(bias=None))
    TRITON.normalize_activate(x, affine, x, 0.0)
    TRITON.reduce_grad(x, x, affine)
    TRITON.reduce_grad_activate(x, x, x, affine, 0.0)
    TRITON.input_grad(x, x, affine, channels, channels)


@pytest.mark.parametrize(
    ("architecture", "dtype", "shape", "memory_format", "load"),
    [
        # 16 bytes of a tensor by each load, wherever the number of neighbours allows.
        (90, torch.bfloat16, (64, 256, 56, 56), torch.channels_last, 16),
        (80, torch.float16, (64, 64, 28, 28), torch.contiguous_format, 16),
        (80, torch.float64, (64, 64, 28, 28), torch.channels_last, 16),
        (90, torch.float32, (64, 1024, 14, 14), torch.contiguous_format, 16),
        (90, torch.bfloat16, (64, 1024, 14, 14), torch.contiguous_format, 8),
        (80, torch.float32, (3, 5, 7, 7), torch.channels_last, 4),
    ],
)
def test_every_kernel_compiles(
    architecture: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    load: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[CompiledKernel] = []

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        compiled.append(compile_for(architecture, kernel, *arguments, **constants))

    monkeypatch.setattr(kernels, "_launch", launch)
    monkeypatch.setattr(kernels, "_multiprocessors", lambda _: 132)
    step(torch.empty(shape, dtype=dtype, memory_format=memory_format))
    assert len(compiled) == 9
    for kernel in compiled:
        ptx = kernel.asm["ptx"]
        assert f".target sm_{architecture}" in ptx
        assert not re.search(r"(?<![a-z])(atom|red)\.", ptx), "sums whose order changes"
        assert ".local" not in ptx, "registers spilt to memory"
        assert 2 * kernel.metadata.shared <= SHARED[architecture]
        if not kernel.metadata.name.endswith("merge"):
            assert max(widths(ptx)) == load, "as wide as it can be"


def widths(ptx: str) -> set[int]:
    """Bytes of each load of values from global memory, synchronous or not."""
    loads = {int(vector or 1) * int(bits) // 8 for vector, bits in re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", ptx)}
    return loads | {int(size, 16) for size in re.findall(r"cp\.async\.c[ag][^\n]*?, 0x([0-9a-f]+)", ptx)}
