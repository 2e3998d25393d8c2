"""Which kernels serve a tensor.

The environment variable SYNCBN_KERNELS, read at the import, forces a choice: `aten` for no more than ATen's kernels,
`native` to fail where there is no library, `triton` for those of `triton`, on CUDA, which nothing else imports.
"""

import os
from types import ModuleType

from torch import Tensor

from syncbn.norm.core import compat
from syncbn.norm.kernels import aten_cpu, aten_cuda, native, plain


def kernels_for(x: Tensor) -> ModuleType:
    """The fastest kernels for the device of `x`; a tool that wants to see every operation is shown ATen's."""
    if _FIRST is not None and not compat.in_dispatch_mode() and _FIRST.serves(x):
        return _FIRST
    return {"cpu": aten_cpu, "cuda": aten_cuda}.get(x.device.type, plain)


def asked_first(choice: str) -> ModuleType | None:
    """The module that SYNCBN_KERNELS chooses; `native` when it is empty."""
    if choice == "aten":
        return None
    if choice == "triton":
        try:
            from syncbn.norm.kernels import triton
        except ModuleNotFoundError as error:
            raise ImportError(
                f"SYNCBN_KERNELS=triton needs Triton ({error}): pip install triton, or leave SYNCBN_KERNELS unset"
            ) from error
        triton.check_device()
        return triton
    if choice not in ("", "native"):
        raise ValueError(f"SYNCBN_KERNELS must be aten, native or triton, or unset for the fastest; got {choice!r}")
    if choice and isinstance(why := native.library(), str):
        raise RuntimeError(f"SYNCBN_KERNELS=native, but the library can't be had: {why}")
    return native


_FIRST = asked_first(os.environ.get("SYNCBN_KERNELS", ""))
