"""Kernels of batch normalization, behind the interface of `interface.py`.

`native` is a small C++ library for float32 on CPU, `aten_cpu` and `aten_cuda` are ATen's kernels, and `triton` is
available for CUDA on request. None of these has an autograd formula. `plain` consists of differentiable operations, for
higher derivatives, tracing and all other devices. `syncbn.norm.core.kernels` chooses.
"""
