"""Selection of the kernels for a tensor.

The environment variable SYNCBN_KERNELS, read at import, forces a choice: `aten` for only ATen's kernels, `native` to
fail if there is no library, `triton` for Triton's on CUDA; Triton is imported only then.
"""

import os

from torch import Tensor

from syncbn.norm.core import compat
from syncbn.norm.kernels.aten_cpu import ATEN_CPU
from syncbn.norm.kernels.aten_cuda import ATEN_CUDA
from syncbn.norm.kernels.interface import Kernels
from syncbn.norm.kernels.native import NATIVE, library
from syncbn.norm.kernels.plain import PLAIN


def kernels_for(*tensors: Tensor) -> Kernels:
    """Fastest kernels that can read all of `tensors`: an input and, in a backward pass, the gradient.

    A dispatch mode, such as a flop counter, gets ATen's operations; a trace or a transform gets differentiable ones.
    """
    if compat.is_transformed() or compat.is_proxy_tracing():
        return PLAIN
    for kernels in _ATEN if compat.in_dispatch_mode() else _FASTEST:
        if kernels.serves(*tensors):
            return kernels
    return PLAIN


def has_native() -> bool:
    """Whether the C++ library may be used, and is there."""
    return NATIVE in _FASTEST and not isinstance(library(), str)


def candidates(choice: str) -> tuple[Kernels, ...]:
    """Candidate kernels for a value of SYNCBN_KERNELS, the fastest first; empty means `native` first."""
    if choice == "aten":
        return _ATEN
    if choice == "triton":
        try:
            from syncbn.norm.kernels.triton import TRITON, check_device
        except ModuleNotFoundError as error:
            raise ImportError(
                f"SYNCBN_KERNELS=triton needs Triton ({error}): pip install triton, or leave SYNCBN_KERNELS unset"
            ) from error
        check_device()
        return TRITON, *_ATEN
    if choice not in ("", "native"):
        raise ValueError(f"SYNCBN_KERNELS must be aten, native or triton, or unset for the fastest; got {choice!r}")
    if choice and isinstance(why := library(), str):
        raise RuntimeError(f"SYNCBN_KERNELS=native, but the library can't be had: {why}")
    return NATIVE, *_ATEN


_ATEN: tuple[Kernels, ...] = (ATEN_CPU, ATEN_CUDA)
_FASTEST = candidates(os.environ.get("SYNCBN_KERNELS", ""))
