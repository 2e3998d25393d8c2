"""No warning of `syncbn.inspect` fires on a healthy network of the zoo."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.models.dcgan import DCGAN
from syncbn.models.fcn import fcn_resnet18
from syncbn.models.inception import bn_inception, bn_inception_small
from syncbn.models.resnet import resnet18, resnet50

SMALL = {"num_classes": 4, "in_channels": 1, "width": 8}
DIGITS, NOISE, IMAGES = (32, 1, 8, 8), (32, 16), (16, 3, 64, 64)


def gan(norm: str) -> DCGAN:
    return DCGAN(norm, in_channels=1, image_size=8, latent_size=16, width=16, base_size=2)


ZOO: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda norm: resnet18(norm, stem="cifar", **SMALL), DIGITS),
    "resnet50": (lambda norm: resnet50(norm, stem="cifar", **SMALL), DIGITS),
    "pre-activation": (lambda norm: resnet18(norm, stem="cifar", placement="pre_activation", **SMALL), DIGITS),
    "post-activation": (lambda norm: resnet18(norm, stem="cifar", placement="post_activation", **SMALL), DIGITS),
    "bn_inception": (lambda norm: bn_inception(norm, num_classes=4, width=8), IMAGES),
    "bn_inception_small": (lambda norm: bn_inception_small(norm, **SMALL), DIGITS),
    "fcn_resnet18": (lambda norm: fcn_resnet18(norm, stem="cifar", **SMALL), (8, 1, 32, 32)),
    "generator": (lambda norm: gan(norm).generator, NOISE),
    "discriminator": (lambda norm: gan(norm).discriminator, DIGITS),
}


@pytest.mark.parametrize("norm", ["batch", "sync"])
@pytest.mark.parametrize("name", ZOO)
def test_a_healthy_network_gives_no_warning(name: str, norm: str) -> None:
    torch.manual_seed(0)
    make, shape = ZOO[name]
    net = make(norm)
    batches: list[Tensor] = [torch.randn(shape) for _ in range(6)]
    syncbn.recalibrate(net, batches)
    report = syncbn.inspect(net.eval(), batches)
    assert report.rows
    assert not report.warnings
