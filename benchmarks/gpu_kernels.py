"""Run every kernel once, on uneven shapes, for compute-sanitizer: python -m benchmarks.gpu_kernels."""

import sys

import torch

from syncbn.norm.core.kernels import kernels_for
from syncbn.norm.kernels.interface import ChannelAffine

_SHAPES = ((3, 5, 7, 7), (4, 64, 14, 13), (2, 257, 3), (33, 8))


def main() -> None:
    """Run all kernels on the GPU."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu_kernels needs a CUDA GPU, and torch finds none", file=sys.stderr)
        sys.exit(2)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in _SHAPES:
            for channels_last in (False, True):
                _run(shape, dtype, channels_last)
    torch.cuda.synchronize()
    print(f"| kernels | {kernels_for(torch.empty(1, device='cuda')).name} ran |")


def _run(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
    x, dy = torch.randn(2, *shape, device="cuda", dtype=dtype)
    if channels_last:
        x, dy = (tensor.movedim(1, -1).contiguous().movedim(-1, 1) for tensor in (x, dy))
    kernels = kernels_for(x)
    mean, m2, count = kernels.moments(x)
    mean, var = mean.float(), (m2 / count).float()
    affine = ChannelAffine(mean, var, 1e-5, torch.ones_like(mean), torch.ones_like(mean))
    kernels.normalize(x, affine)
    y = kernels.normalize_activate(x, affine, dy, 0.0)
    kernels.reduce_grad(dy, x, affine)
    sums = kernels.reduce_grad_activate(dy, y, x, affine, 0.0)
    kernels.input_grad(dy, x, affine, sums[0] / count, sums[1] / count)


if __name__ == "__main__":
    main()
