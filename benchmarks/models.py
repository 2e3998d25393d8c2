"""Parameters, work and time of every network on the images it is for, and what its data's loader delivers.

`python -m benchmarks.models` prints the tables of docs/models.md: a Markdown table of networks, and one of loaders.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from syncbn.data import DigitsDataModule, GlobalBatchDataModule, ScenesDataModule
from syncbn.models.dcgan import DCGAN
from syncbn.models.fcn import fcn_resnet18
from syncbn.models.inception import bn_inception, bn_inception_small
from syncbn.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from syncbn.models.vit import llama_vit, vit

BATCH = 16
REPEATS = 7
SMALL = {"num_classes": 10, "in_channels": 1}
IMAGENET = (3, 224, 224)
DIGIT = (1, 8, 8)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (resnet18, IMAGENET),
    "resnet34": (resnet34, IMAGENET),
    "resnet50": (resnet50, IMAGENET),
    "resnet101": (resnet101, IMAGENET),
    "resnet152": (resnet152, IMAGENET),
    "bn_inception": (bn_inception, IMAGENET),
    "resnet18, width=16, stem=cifar": (lambda: resnet18(stem="cifar", width=16, **SMALL), DIGIT),
    "bn_inception_small": (lambda: bn_inception_small(**SMALL), DIGIT),
    "vit, patch_size=2": (lambda: vit(image_size=8, patch_size=2, **SMALL), DIGIT),
    "llama_vit, patch_size=2": (lambda: llama_vit(image_size=8, patch_size=2, **SMALL), DIGIT),
    "fcn_resnet18, width=16, stem=cifar": (
        lambda: fcn_resnet18(stem="cifar", width=16, num_classes=11, in_channels=1),
        (1, 32, 32),
    ),
    "dcgan's generator": (lambda: _small_dcgan().generator, (16,)),
    "dcgan's discriminator": (lambda: _small_dcgan().discriminator, DIGIT),
}
LOADERS: dict[str, Callable[[], GlobalBatchDataModule]] = {
    "digits": lambda: DigitsDataModule(batch_size=32),
    "digits, augment=false": lambda: DigitsDataModule(batch_size=32, augment=False),
    "scenes": lambda: ScenesDataModule(batch_size=8),
}


def main() -> None:
    torch.set_num_threads(1)
    print(network_table())
    print(loader_table())


def network_table() -> str:
    """A row a network: input, parameters, multiply-adds of a forward pass, images/s of forward and backward."""
    rows = ["| network | input | parameters | multiply-adds | images/s |", "|---|---|--:|--:|--:|"]
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        net = build()
        parameters = sum(p.numel() for p in net.parameters())
        size = "×".join(map(str, shape))
        rate = training_images_per_second(net, shape, BATCH if len(shape) == 1 or shape[1] < 100 else 2)
        rows.append(
            f"| {name} | {size} | {parameters:,} | {multiply_adds(net, shape) / 1e6:,.1f} M | {_rounded(rate)} |"
        )
    return "\n".join(rows) + "\n"


def loader_table() -> str:
    """A row a loader: images/s in one process."""
    rows = ["| data | images/s |", "|---|--:|"]
    for name, build in LOADERS.items():
        loader = build().train_dataloader()
        rates = []
        for _ in range(3):
            started = time.perf_counter()
            images = sum(len(labels) for _, labels in loader)
            rates.append(images / (time.perf_counter() - started))
        rows.append(f"| {name} | {max(rates):,.0f} |")
    return "\n".join(rows) + "\n"


def multiply_adds(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one image's forward pass: convolutions, matrix products and attention, not norms and activations."""
    net = net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def training_images_per_second(net: nn.Module, shape: tuple[int, ...], batch: int) -> float:
    """The fastest of several steps forward and backward, on one CPU thread."""
    net = net.train()
    images, times = torch.randn(batch, *shape), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        output: Tensor = net(images)
        output.sum().backward()
        times.append(time.perf_counter() - started)
    return batch / min(times)


def _rounded(rate: float) -> str:
    """Two digits at least."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _small_dcgan() -> DCGAN:
    return DCGAN(in_channels=1, image_size=8, latent_size=16, width=32, base_size=2)


if __name__ == "__main__":
    main()
