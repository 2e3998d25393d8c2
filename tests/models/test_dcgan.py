"""DCGAN against a plain computation over its parameters, and the paper's rules."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.models.dcgan import DCGAN


def norm_of(state: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    """Batch normalization in training, or nothing where the layer has no norm."""
    if f"{at}.norm.weight" not in state:
        return x
    centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
    x = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return x * state[f"{at}.norm.weight"][:, None, None] + state[f"{at}.norm.bias"][:, None, None]


def layers(state: dict[str, Tensor]) -> list[str]:
    return [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]


@pytest.mark.parametrize("norm_at", ["paper", "everywhere", "nowhere"])
def test_generator_and_discriminator_are_the_papers(norm_at: str) -> None:
    torch.manual_seed(0)
    net = DCGAN("batch", in_channels=2, image_size=16, latent_size=5, width=3, base_size=2, norm_at=norm_at).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)

    noise = torch.randn(4, 5, dtype=torch.float64)
    state = net.generator.state_dict()
    first, *up, last = layers(state)
    x = norm_of(state, first, torch.einsum("ni,iohw->nohw", noise, state[f"{first}.conv.weight"]) + bias(state, first))
    for at in [*up, last]:
        x = F.conv_transpose2d(F.relu(x), state[f"{at}.conv.weight"], stride=2, padding=1) + bias(state, at)
        x = norm_of(state, at, x)
    assert x.shape == (4, 2, 16, 16)
    torch.testing.assert_close(net.generator(noise), x.tanh())

    images = torch.randn(4, 2, 16, 16, dtype=torch.float64)
    state = net.discriminator.state_dict()
    x = images
    *down, last = layers(state)
    for at in down:
        x = norm_of(state, at, F.conv2d(x, state[f"{at}.conv.weight"], stride=2, padding=1) + bias(state, at))
        x = torch.where(x > 0, x, 0.2 * x)
    x = torch.einsum("nihw,oihw->no", x, state[f"{last}.conv.weight"])[:, :, None, None] + bias(state, last)
    torch.testing.assert_close(net.discriminator(images), norm_of(state, last, x).flatten())


def bias(state: dict[str, Tensor], at: str) -> Tensor:
    return state.get(f"{at}.conv.bias", torch.zeros(1, dtype=torch.float64)).view(1, -1, 1, 1)


def normed(net: nn.Module) -> list[bool]:
    return [not isinstance(layer.norm, nn.Identity) for layer in net.modules() if hasattr(layer, "norm")]


def test_the_papers_rules_for_norms_and_biases() -> None:
    net = DCGAN("sync", image_size=32, width=4)
    assert normed(net.generator) == [True, True, True, False]
    assert normed(net.discriminator) == [False, True, True, False]
    for layer in net.modules():
        if hasattr(layer, "conv"):
            assert (layer.conv.bias is None) is not isinstance(layer.norm, nn.Identity)
    assert all(normed(DCGAN("sync", image_size=32, width=4, norm_at="everywhere")))
    assert not any(normed(DCGAN("sync", image_size=32, width=4, norm_at="nowhere")))
    for one, other in (("generator", "discriminator"), ("discriminator", "generator")):
        alone = DCGAN("sync", image_size=32, width=4, norm_at=one)
        assert normed(getattr(alone, one)) == normed(getattr(net, one))
        assert not any(normed(getattr(alone, other)))


def test_the_papers_size_and_initialization() -> None:
    torch.manual_seed(0)
    net = DCGAN(
        latent_size=100, image_size=64, width=64
    )  # Figure 1: 100 -> 512×4×4 -> 256×8×8 -> 128×16×16 -> 64×32×32
    # The paper's Figure 1 has 1024 channels at 4×4, its published code 512.
    channels = [100, 512, 256, 128, 64, 3]
    weights = [16 * a * b for a, b in pairwise(channels)]
    norms = 2 * sum(channels[1:-1])
    assert sum(p.numel() for p in net.generator.parameters()) == sum(weights) + norms + 3
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.weight.mean().abs().item() < 1e-3


def test_the_average_follows_the_generator() -> None:
    net = DCGAN("batch", in_channels=1, image_size=8, latent_size=4, width=2, base_size=2, average_decay=0.75)
    start = copy.deepcopy(net.generator.state_dict())
    net.average.update_parameters(net.generator)  # the first update copies
    with torch.no_grad():
        for value in net.generator.state_dict().values():
            value.add_(1)
    net.average.update_parameters(net.generator)
    for key, value in net.average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, start[key] + 0.25)
    assert not any(p.requires_grad for p in net.average.parameters())


def test_samples_come_from_the_average() -> None:
    net = DCGAN(in_channels=1, image_size=8, latent_size=4, width=2, base_size=2).eval()
    noise = torch.randn(3, 4)
    torch.testing.assert_close(net(noise), net.average.module(noise))
    assert net(noise).abs().max() <= 1


@pytest.mark.parametrize("norm", ["sync", "layer", "none"])
def test_both_networks_get_gradients(norm: str) -> None:
    net = DCGAN(syncbn.norm_layer(norm), in_channels=1, image_size=8, latent_size=4, width=4, base_size=2)
    net.discriminator(net.generator(torch.randn(6, 4))).sum().backward()
    for part in (net.generator, net.discriminator):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48}, r"image_size must be square, of 8, 16, 32.*, got 48×48; set base_size"),
        ({"image_size": (8, 16)}, "image_size must be square"),
        (
            {"norm_at": "here"},
            "unknown norm_at 'here'; allowed: 'paper', 'generator', 'discriminator', 'everywhere', 'now",
        ),
        ({"average_decay": 1.0}, "average_decay must be at least 0 and below 1, got 1.0"),
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DCGAN(**options)


def test_images_in_place_of_noise_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected noise \(N, 100\), got \(2, 3, 64, 64\); a DCGAN is trained by GANTask"
    ):
        DCGAN(width=2)(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("size", [(128, 64), (128, 128), (32, 32)])
def test_the_discriminator_refuses_images_of_another_size(size: tuple[int, int]) -> None:
    net = DCGAN(image_size=64, width=2)
    assert net.discriminator(torch.zeros(4, 3, 64, 64)).shape == (4,)
    with pytest.raises(ValueError, match=rf"expected images of 64 x 64 pixels, got {size[0]} x {size[1]}; build"):
        net.discriminator(torch.zeros(4, 3, *size))
