"""BN-Inception against the paper's table and against a plain computation over its parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.models.inception import InceptionBlock, InceptionRow, bn_inception, bn_inception_small

# Figure 5 of the paper, as printed: output size, #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, projection.
FIGURE_5 = {
    "3a": ((28, 256), 64, 64, 64, 64, 96, 32),
    "3b": ((28, 320), 64, 64, 96, 64, 96, 64),
    "3c": ((14, 576), 0, 128, 160, 64, 96, 0),
    "4a": ((14, 576), 224, 64, 96, 96, 128, 128),
    "4b": ((14, 576), 192, 96, 128, 96, 128, 128),
    "4c": ((14, 576), 160, 128, 160, 128, 160, 96),
    "4d": ((14, 576), 96, 128, 192, 160, 192, 96),
    "4e": ((7, 1024), 0, 128, 192, 192, 256, 0),
    "5a": ((7, 1024), 352, 192, 320, 160, 224, 128),
    "5b": ((7, 1024), 352, 192, 320, 192, 224, 128),
}


def parameters_of_figure_5() -> int:
    """Weights of the table's convolutions, two norm parameters an output, and the classifier."""

    def layer(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs if outputs else 0

    total = 24 * 49 + layer(24, 64, 1) + layer(64, 64, 1) + layer(64, 192, 3)
    inputs = 192
    for (_, outputs), one, three_reduce, three, double_reduce, double, projection in FIGURE_5.values():
        total += layer(inputs, one, 1) + layer(inputs, projection, 1)
        total += layer(inputs, three_reduce, 1) + layer(three_reduce, three, 3)
        total += layer(inputs, double_reduce, 1) + layer(double_reduce, double, 3) + layer(double, double, 3)
        inputs = outputs
    return total + 1024 * 1000 + 1000


def test_sizes_and_parameters_are_figure_5s() -> None:
    with torch.device("meta"):
        model = bn_inception()
        sizes: dict[str, tuple[int, ...]] = {}
        for name, block in model.blocks.items():
            block.register_forward_hook(lambda _, __, y, name=name: sizes.update({name: tuple(y.shape)}))
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)

    assert sizes == {name: (2, channels, size, size) for name, ((size, channels), *_) in FIGURE_5.items()}
    assert sum(p.numel() for p in model.parameters()) == parameters_of_figure_5()


@pytest.mark.parametrize(
    "row",
    [
        InceptionRow(3, 2, 4, 5, 6, "avg", 7),
        InceptionRow(3, 2, 4, 5, 6, "max", 7),
        InceptionRow(0, 2, 4, 5, 6, "max", 0, 2),
    ],
)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_a_block_is_its_branches_side_by_side(row: InceptionRow, activation: str) -> None:
    torch.manual_seed(0)
    block = InceptionBlock(5, row, syncbn.norm_layer("batch"), activation).double()
    state = {key: torch.randn_like(value) if value.dim() else value for key, value in block.state_dict().items()}
    block.load_state_dict(state)
    x = torch.randn(3, 5, 9, 9, dtype=torch.float64)

    def layer(x: Tensor, at: str, stride: int = 1) -> Tensor:
        weight = state[f"{at}.conv.weight"]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        centred = y - y.mean(dim=(0, 2, 3), keepdim=True)
        y = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
        y = y * state[f"{at}.bn.weight"][:, None, None] + state[f"{at}.bn.bias"][:, None, None]
        return y.clamp(min=0) if activation == "relu" else 1 / (1 + (-y).exp())

    def pool(x: Tensor) -> Tensor:
        if row.pool == "avg":
            return F.conv2d(x, torch.full((5, 1, 3, 3), 1 / 9, dtype=x.dtype), padding=1, groups=5)
        padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
        return padded.unfold(2, 3, row.stride).unfold(3, 3, row.stride).amax(dim=(4, 5))

    three = layer(layer(x, "three.0"), "three.1", row.stride)
    double = layer(layer(layer(x, "double_three.0"), "double_three.1"), "double_three.2", row.stride)
    projected = layer(pool(x), "projection") if row.projection else pool(x)
    first = [layer(x, "one")] if row.one else []

    torch.testing.assert_close(block(x), torch.cat([*first, three, double, projected], dim=1))
    assert block(x).shape[1] == block.out_channels


@pytest.mark.parametrize(("norm", "has_bias"), [("none", True), ("sync", False)])
def test_convolutions_have_a_bias_only_without_a_norms(norm: str, has_bias: bool) -> None:
    layers = [m.conv for m in bn_inception_small(norm=norm).modules() if hasattr(m, "conv")]
    assert {conv.bias is not None for conv in layers} == {has_bias}


def test_the_baseline_normalizes_locally_around_the_second_convolution() -> None:
    kinds = [type(m).__name__ for m in bn_inception(norm="none", local_response_norm=True, width=4).stem]
    conv = "ConvNorm"
    expected = ["Conv2d", conv, "MaxPool2d", "LocalResponseNorm", conv, conv, "LocalResponseNorm", "MaxPool2d"]
    assert kinds == expected


def test_with_sigmoids_only_a_norm_carries_the_signal_to_the_end() -> None:
    """The paper's reason for its sigmoid variant, seen in the gradient that reaches the first layer."""

    def gradient_at_the_stem(norm: str) -> float:
        torch.manual_seed(0)
        model = bn_inception_small(norm=norm, in_channels=1, activation="sigmoid")
        F.cross_entropy(model(torch.randn(32, 1, 8, 8)), torch.arange(32) % 10).backward()
        return model.stem[0].conv.weight.grad.norm().item()

    assert gradient_at_the_stem("batch") > 100 * gradient_at_the_stem("none")


@pytest.mark.parametrize("norm", ["none", "sync", "group", "layer"])
def test_it_learns_a_batch(norm: str) -> None:
    torch.manual_seed(0)
    model = bn_inception_small(norm=syncbn.norm_layer(norm, **({"groups": 4} if norm == "group" else {})))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    images, labels = torch.randn(10, 3, 8, 8), torch.arange(10)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "unknown activation 'tanh'; allowed: 'relu', 'sigmoid'"),
        ({"width": 1}, "width must be at least 2, got 1"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"norm": "bach"}, "unknown norm 'bach'"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bn_inception_small(**options)


def test_a_model_can_be_traced() -> None:
    torch.fx.symbolic_trace(bn_inception_small(norm=nn.BatchNorm2d))


def test_dropout_acts_in_training_alone() -> None:
    model: nn.Module = bn_inception_small(norm="none", dropout=0.5)
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
