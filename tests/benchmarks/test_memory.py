"""The two memory counts of a forward pass, and that the modes keep less by both, on small images."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import LIMITS, PEER, allocated_megabytes, network, saved_megabytes


class Known(nn.Module):
    """Saves its squared input, the output of exp twice, and a parameter, which doesn't count."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1_000))

    def forward(self, x: Tensor) -> Tensor:
        y = (x.square() * self.scale).exp()
        return y.view(-1).sin().sum() + y.sum()


def test_storages_are_counted_once_and_parameters_are_not() -> None:
    x = torch.randn(50, 1_000, requires_grad=True)
    megabytes = x.numel() * 4 / 1e6
    # x, x² for the gradient of the scale, and y for both exp and sin.
    assert saved_megabytes(Known(), x) == pytest.approx(3 * megabytes)
    # The same without the input, which existed before, plus the returned scalar.
    assert allocated_megabytes(Known(), x) == pytest.approx(2 * megabytes, rel=1e-4)


def test_the_modes_keep_less() -> None:
    images = torch.randn(4, 3, 64, 64)
    peer = network(PEER)
    saved, allocated = saved_megabytes(peer, images), allocated_megabytes(peer, images)
    assert saved == pytest.approx(allocated, rel=0.02)
    for mode, limit in LIMITS.items():
        net = network(mode)
        assert saved_megabytes(net, images) <= limit * saved, mode
        assert allocated_megabytes(net, images) <= limit * allocated, mode
