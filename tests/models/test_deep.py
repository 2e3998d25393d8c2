"""The deep networks: He et al.'s parameter counts, and plain ones that differ only in the shortcuts."""

import pytest
import torch
from torch import nn

from syncbn.models.deep import DeepNet


def weighted_layers(net: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d | nn.Linear) for name, m in net.named_modules() if "downsample" not in name)


@pytest.mark.parametrize("depth", [8, 20, 56, 110])
@pytest.mark.parametrize("residual", [True, False])
def test_depth_is_the_number_of_layers_with_weights(depth: int, residual: bool) -> None:
    assert weighted_layers(DeepNet(depth=depth, width=2, residual=residual)) == depth


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_papers_table_6(depth: int, millions: float) -> None:
    net = DeepNet(depth=depth, residual=False)  # the paper's shortcuts have no parameters
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


def test_a_plain_network_is_the_residual_one_without_shortcuts() -> None:
    torch.manual_seed(0)
    plain, residual = DeepNet(depth=14, width=2, residual=False), DeepNet(depth=14, width=2)
    shared = {key: value for key, value in residual.state_dict().items() if "downsample" not in key}
    plain.load_state_dict(shared)
    seen: list[torch.Tensor] = []
    for block in residual.blocks:  # its inner convolutions alone
        block.bn2.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 3, 8, 8)
    residual.eval()(x)
    h = torch.relu(plain.eval().bn1(plain.conv1(x)))
    torch.testing.assert_close(plain.blocks[0](h), torch.relu(seen[0]))
    assert plain(x).shape == (2, 10)


@pytest.mark.parametrize("depth", [2, 7, 21])
def test_another_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        DeepNet(depth=depth)
