"""The passes over memory that a batch normalization makes, in the order it makes them.

Each module has the same functions; all statistics are per channel, in float32, or float64 for a float64 input:

- `moments(x)`: mean and M2 = Σ(x - mean)² of this rank's samples;
- `normalize(x, mean, var, eps, weight, bias)`: y;
- `normalize_activate(x, mean, var, eps, weight, bias, residual, slope)`: y = a(x̂·weight + bias + residual), where
  a(z) = z if z > 0 else slope·z; residual may be None, a slope of 0 is ReLU's, one of 1 means no activation;
- `reduce_grad(dy, x, mean, var, eps)`: Σdy and Σdy·x̂;
- `reduce_grad_activate(dy, y, x, mean, var, eps, slope)`: Σdz, Σdz·x̂ and dz = dy where y > 0, slope·dy elsewhere;
- `input_grad(dy, x, mean, var, eps, weight, mean_dy, mean_dy_xhat)`: dx;
- `row_dots(parts, b)`: Σ over each row of a·b, (R, D), for each a of `parts`: (K, R).

`aten_cpu` and `aten_cuda` are ATen's kernels, without autograd. `plain` is made of differentiable operations: it serves
higher derivatives, tracing and every other device. `native`, a small C++ library for float32 on CPU, is asked before
them. `syncbn.norm.core.kernels` chooses.
"""
