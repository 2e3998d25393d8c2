"""Decorrelated batch normalization: whitening of channel groups by their covariance over all ranks' samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.checks import check_divides, check_num_features
from syncbn.norm.core.moments import Moments, all_covariance
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.core.tracking import as_constants
from syncbn.norm.decorrelated_options import DecorrelatedOptions as Options
from syncbn.norm.kernels.plain import statistics_dtype
from syncbn.norm.sync import SyncBatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@register("decorrelated", options=Options)
class DecorrelatedBatchNorm(SyncBatchNorm):
    r"""Whitening of channel groups of (N, C, *): output channels have variance 1 and no correlation (IterNorm).

    Training, with n samples on all ranks together, for each group of `group_size` channels:

        mean = Σx / n,  Σ = Σ(x - mean)(x - mean)ᵀ / n + eps · I,  y = γ · W (x - mean) + β

    where W, the whitener, is Σ^(-1/2) by `iterations` steps of Newton's method from P = I on Σ' = Σ / trace(Σ):

        P ← (3·P - P³·Σ') / 2,  W = P / sqrt(trace(Σ))

    Of all whitening matrices, this one (ZCA) rotates the channels least. With few iterations, directions of small
    variance stay below 1. This is intended: scaling noise to unit variance hurts small batches. About
    3 + 0.85 · log2(trace(Σ) / smallest eigenvalue) iterations make the output's covariance the identity. W is computed
    in float64.

    `running_mean` and `running_whitener` (and `running_var`, used only by `syncbn.revert`) average the batch's by
    `momentum`; evaluation normalizes by them and doesn't communicate. Training needs one all-reduce of
    C · group_size + C + 1 float64 numbers forward and one backward; ranks may hold different numbers of samples, or
    none.

    Args:
        num_features: C.
        group_size: channels that are whitened together; must divide C, or be larger, which whitens all C together.
        iterations: Newton steps, at least 1.
        eps: added to the variances; greater than 0.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the mean of all batches.
        affine: whether there are γ (`weight`) and β (`bias`), per channel.
        track_running_stats: whether there are running statistics; without them, evaluation uses this rank's batch.
        process_group: the ranks to synchronize over; all of them when None.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same. Products are float32 under autocast, too, or
        float64 for float64.
        mask (N, *), bool: only positions where it is True count; elsewhere output and gradient are 0.

    Raises:
        ValueError: `group_size` doesn't divide C; `iterations` below 1; otherwise as `SyncBatchNorm`.
        TypeError: as `SyncBatchNorm`.

    Source: Huang et al., Iterative Normalization, CVPR 2019, https://arxiv.org/abs/1904.03441; Decorrelated Batch
        Normalization, CVPR 2018, https://arxiv.org/abs/1804.08450.
    """

    running_whitener: Tensor | None

    def __init__(
        self,
        num_features: int,
        group_size: int = Options.group_size,
        iterations: int = Options.iterations,
        eps: float = Options.eps,
        momentum: float | None = Options.momentum,
        affine: bool = Options.affine,
        track_running_stats: bool = Options.track_running_stats,
        process_group: ProcessGroup | None = None,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        num_features = check_num_features(num_features)
        if not isinstance(group_size, int) or group_size < num_features:
            check_divides("group_size", group_size, num_features)
        check_arguments(Options, locals())
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, process_group, bias, device, dtype, **shared
        )
        self.group_size = min(group_size, num_features)
        self.iterations = iterations
        groups = num_features // self.group_size
        identity = None
        if self.running_mean is not None:
            identity = torch.eye(self.group_size, device=device, dtype=self.running_mean.dtype).repeat(groups, 1, 1)
        self.register_buffer("running_whitener", identity)

    def reset_running_stats(self) -> None:
        """Reset the running mean to 0, the variance to 1 and the whitener to the identity."""
        super().reset_running_stats()
        whitener = self._buffers.get("running_whitener")  # torch's constructor resets before it exists
        if whitener is not None:
            whitener.copy_(torch.eye(self.group_size, device=whitener.device))

    def adopt(self, old: nn.Module) -> None:
        """Start from the running variances of `old`, so that evaluation doesn't change."""
        if self.running_whitener is not None and self.running_var is not None:
            scales = torch.rsqrt(self.running_var + self.eps).view(-1, self.group_size)
            self.running_whitener.copy_(torch.diag_embed(scales))

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        self.check_input(input, mask)
        if mask is not None:
            mask = mask.unsqueeze(1)
            input = torch.where(mask, input, 0)
        with torch.autocast(input.device.type, enabled=False):
            output = self._whitened(input, mask)
        output = output.view(input.shape[0], *input.shape[2:], self.num_features).movedim(-1, 1).to(input.dtype)
        output = output.contiguous() if input.is_contiguous() else output
        return output if mask is None else torch.where(mask, output, 0)

    def _whitened(self, input: Tensor, mask: Tensor | None) -> Tensor:
        """y as (samples and positions, C)."""
        x = self._grouped(_rows(input.to(statistics_dtype(input))))
        if self.training or self.running_mean is None or self.running_whitener is None:
            count = x.new_full((), x.shape[1]) if mask is None else mask.sum()
            near = x.detach().sum(1, keepdim=True) / count.clamp(min=1)  # centering near the data avoids cancellation
            x = x - near
            x = x if mask is None else torch.where(_rows(mask), x, 0)
            offset, whitener = self._batch_statistics(input, x, near, count)
        else:
            mean, whitener = as_constants(input, self.running_mean, self.running_whitener)
            x = x - self._grouped(mean)
            offset = torch.zeros_like(x[:, :1])
        weight, bias = self.affine_parameters(input)
        if weight is not None:
            whitener = whitener * self._grouped(weight)
        shift = -offset @ whitener if bias is None else self._grouped(bias) - offset @ whitener
        return torch.baddbmm(shift, x, whitener).transpose(0, 1).reshape(-1, self.num_features)

    def _batch_statistics(self, input: Tensor, x: Tensor, near: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and W of all ranks' samples; `x` are this rank's samples, and both have `near` subtracted."""
        group = self.communicating_group() if self.training else None
        self._check_batch(input, group)
        count, mean, covariance = all_covariance(x, near.squeeze(1), count, group)
        identity = torch.eye(self.group_size, dtype=covariance.dtype, device=covariance.device)
        whitener = inverse_sqrt(covariance + self.eps * identity, self.iterations)
        if self.training:
            var = (covariance * identity).sum(2).flatten().clamp(min=0)
            self.track(Moments(count, mean.flatten(), count * var), others={"running_whitener": whitener})
        return (mean.unsqueeze(1) - near).to(x.dtype), whitener.to(x.dtype)

    def _grouped(self, rows: Tensor) -> Tensor:
        """(samples, C) or (C,) as (groups, samples or 1, group_size)."""
        return rows.view(-1, self.num_features // self.group_size, self.group_size).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}, iterations={self.iterations}"


def inverse_sqrt(matrices: Tensor, iterations: int) -> Tensor:
    """Compute A^(-1/2) of symmetric positive definite matrices (*, D, D) by Newton steps from the identity.

    With B = A / trace(A): P ← (3·P - P³·B) / 2, and A^(-1/2) = P / sqrt(trace(A)). Iterating Y = B·P too gives the same
    result and is stable; with P alone, each step would amplify rounding errors (Higham, Functions of Matrices, SIAM
    2008, chapter 6).
    """
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    trace = (matrices * identity).sum((-2, -1), keepdim=True)  # Inductor warns about `diagonal`
    p, y = identity, matrices / trace
    for _ in range(iterations):
        step = (3 * identity - p @ y) / 2
        p, y = step @ p, y @ step
    return p / trace.sqrt()


def _rows(x: Tensor) -> Tensor:
    """(N, C, *) as (samples and positions, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])
