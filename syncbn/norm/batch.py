"""Batch normalization of one rank: torch's own layer, for any number of spatial dimensions."""

from torch import Tensor, nn

from syncbn.norm.registry import register


@register("batch")
class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that also takes (N, C), (N, C, L) and (N, C, D, H, W): moments of this rank's batch alone.

    Training normalizes by the batch's moments and moves the running statistics; eval uses the running statistics.

    Source: Ioffe & Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167.

    Raises:
        ValueError: the input has fewer than two dimensions.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input (N, C) or (N, C, *spatial), got {input.dim()} dimension(s)")
