"""The networks against the paper's table and torchvision's naming; every norm trains in them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.models import resnet

PARAMETERS = {  # torchvision's published counts
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BATCH_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def expected_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of torchvision's checkpoint, written from the paper's Table 1 and not from our classes."""
    bottleneck = name in ("resnet50", "resnet101", "resnet152")
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    norms = {"bn1": 64}
    channels = 64
    for stage, (depth, width) in enumerate(zip(DEPTHS[name], (64, 128, 256, 512), strict=True), start=1):
        out = 4 * width if bottleneck else width
        for block in range(depth):
            at = f"layer{stage}.{block}"
            if bottleneck:
                convs = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            else:
                convs = [(width, channels, 3, 3), (width, width, 3, 3)]
            for i, shape in enumerate(convs, start=1):
                shapes[f"{at}.conv{i}.weight"] = shape
                norms[f"{at}.bn{i}"] = shape[0]
            if block == 0 and (stage > 1 or bottleneck):
                shapes[f"{at}.downsample.0.weight"] = (out, channels, 1, 1)
                norms[f"{at}.downsample.1"] = out
            channels = out
    for norm, features in norms.items():
        shapes |= {f"{norm}.{key}": () if key == "num_batches_tracked" else (features,) for key in BATCH_NORM_KEYS}
    return shapes | {"fc.weight": (1000, channels), "fc.bias": (1000,)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_keys_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model = getattr(resnet, name)()

    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected_shapes(name)


def functional_resnet(
    state: dict[str, Tensor],
    x: Tensor,
    *,
    strides: dict[str, int],
    imagenet: bool,
    placement: str = "post_conv",
) -> Tensor:
    """Eval-mode ResNet written from the papers over a bare state dict, without any of our modules."""

    def conv(x: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = state[f"{key}.weight"]
        return F.conv2d(x, weight, state.get(f"{key}.bias"), stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var, scale, shift = (
            state[f"{key}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def block(x: Tensor, at: str, stride: int) -> Tensor:
        projected = f"{at}.downsample.0.weight" in state
        bottleneck = f"{at}.conv3.weight" in state
        steps = {1: 1, 2: stride, 3: 1} if bottleneck else {1: stride, 2: 1}
        if placement == "pre_activation":  # He et al. 2016, Figure 1 (b)
            y = F.relu(norm(x, f"{at}.bn1"))
            x = conv(y, f"{at}.downsample.0", stride) if projected else x
            y = conv(y, f"{at}.conv1", steps[1])
            for i in list(steps)[1:]:
                y = conv(F.relu(norm(y, f"{at}.bn{i}")), f"{at}.conv{i}", steps[i])
            return x + y
        shortcut = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1") if projected else x
        for i, step in steps.items():
            x = conv(x, f"{at}.conv{i}", step)
            if placement == "post_activation":
                x = norm(F.relu(x), f"{at}.bn{i}")
            else:
                x = norm(x, f"{at}.bn{i}")
                x = F.relu(x + shortcut) if i == len(steps) else F.relu(x)
        return x + shortcut if placement == "post_activation" else x

    x = conv(x, "conv1", 2 if imagenet else 1)
    if placement == "post_conv":
        x = F.relu(norm(x, "bn1"))
    elif placement == "post_activation":
        x = norm(F.relu(x), "bn1")
    if imagenet:
        x = F.max_pool2d(x, 3, 2, 1)
    blocks = {tuple(key.split(".")[:2]) for key in state if key.startswith("layer")}
    for layer, number in sorted(blocks, key=lambda b: (b[0], int(b[1]))):
        x = block(x, f"{layer}.{number}", strides[layer] if number == "0" else 1)
    if placement == "pre_activation":
        x = F.relu(norm(x, "bn_last"))
    return F.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"])


def randomized(model: nn.Module) -> nn.Module:
    """Convert to float64 and eval mode, with random statistics, scales and shifts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.double().eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(
    ("stem", "placement"),
    [
        ("imagenet", "post_conv"),
        ("cifar", "post_conv"),
        ("imagenet", "post_activation"),
        ("imagenet", "pre_activation"),
    ],
)
def test_outputs_are_the_papers(name: str, stem: str, placement: str) -> None:
    torch.manual_seed(0)
    model = randomized(getattr(resnet, name)(num_classes=7, stem=stem, width=4, placement=placement))
    x = torch.randn(2, 3, 37, 33, dtype=torch.float64)
    strides = {"layer1": 1, "layer2": 2, "layer3": 2, "layer4": 2}

    expected = functional_resnet(
        model.state_dict(), x, strides=strides, imagenet=stem == "imagenet", placement=placement
    )

    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", syncbn.available_norms())
def test_every_norm_trains(norm: str) -> None:
    torch.manual_seed(0)
    options = {"groups": 4} if norm == "group" else {}
    model = resnet.resnet18(
        norm=syncbn.norm_layer(norm, **options), num_classes=5, in_channels=1, stem="cifar", width=8
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels = torch.randn(10, 1, 16, 16), torch.arange(10) % 5

    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("norm", "has_bias"), [("none", True), ("sync", False), ("batch", False), ("layer", False)])
def test_convolutions_have_a_bias_only_without_a_norms(norm: str, has_bias: bool) -> None:
    model = resnet.resnet18(norm=norm, width=8)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert {conv.bias is not None for conv in convolutions} == {has_bias}


def test_a_norm_given_as_a_function() -> None:
    model = resnet.resnet50(norm=lambda channels: nn.BatchNorm2d(channels, momentum=0.3), width=4)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert {norm.momentum for norm in norms} == {0.3}


@pytest.mark.parametrize("placement", ["post_conv", "post_activation", "pre_activation"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_residual_makes_blocks_the_identity(name: str, placement: str) -> None:
    model = getattr(resnet, name)(width=4, zero_init_residual=True, placement=placement)
    x = torch.rand(2, model.layer2[1].conv1.in_channels, 5, 5)
    torch.testing.assert_close(model.layer2[1](x), x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("placement", "biases"), [("post_conv", {False}), ("post_activation", {True}), ("pre_activation", {False})]
)
def test_only_a_bias_that_a_norm_undoes_is_left_out(placement: str, biases: set[bool]) -> None:
    model = resnet.resnet50(width=4, placement=placement)
    in_branches = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in name]
    assert {conv.bias is not None for conv in in_branches} == biases


def test_every_placement_trains_through_its_norms() -> None:
    for placement in ("post_conv", "post_activation", "pre_activation"):
        model = resnet.resnet18(norm="sync", num_classes=3, stem="cifar", width=4, placement=placement)
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), placement
        norms = [m for m in model.modules() if isinstance(m, syncbn.SyncBatchNorm)]
        assert {int(norm.num_batches_tracked) for norm in norms} == {1}, placement


def test_an_empty_batch_in_eval() -> None:
    assert resnet.resnet18(width=4, num_classes=3).eval()(torch.empty(0, 3, 32, 32)).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ({"stem": "mnist"}, "unknown stem 'mnist'; allowed: 'imagenet'"),
        ({"placement": "post"}, "unknown placement 'post'; allowed: 'post_conv', 'post_activation', 'pre_activation'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels must be at least 1, got -1"),
        ({"norm": "none", "zero_init_residual": True}, "needs a norm with a scale"),
        ({"norm": syncbn.norm_layer("group", groups=4), "width": 5}, "groups must divide the 5 channels"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet.resnet18(**options)


def test_a_wrong_input_says_what_is_expected() -> None:
    model = resnet.resnet18(width=4)
    with pytest.raises(TypeError, match=r"expected a floating-point input, got torch.uint8; .*255"):
        model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected an input \(N, 3, H, W\), got \(2, 1, 8, 8\)"):
        model(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected an input \(N, 3, H, W\), got \(3, 8, 8\)"):
        model(torch.zeros(3, 8, 8))
