"""The passes over memory of a batch normalization, each set of them behind the interface of `interface.py`.

`native` is a small C++ library for float32 on CPU, `aten_cpu` and `aten_cuda` are ATen's kernels, and `triton` is there
for CUDA where it is asked for. None of these has an autograd formula. `plain` is made of differentiable operations: it
serves higher derivatives, tracing and every other device. `syncbn.norm.core.kernels` chooses.
"""
