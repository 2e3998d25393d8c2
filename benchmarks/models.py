"""Parameters, operations and speed of every network on its usual images, and the speed of its data loader.

`python -m benchmarks.models` measures, and replaces two tables of docs/models.md: networks, and loaders compared with
the network that they feed.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from syncbn.data import DigitsDataModule, GlobalBatchDataModule, ImageDataModule, ScenesDataModule
from syncbn.models.dcgan import DCGAN
from syncbn.models.deep import DeepNet
from syncbn.models.fcn import fcn_resnet18, fcn_resnet50
from syncbn.models.inception import bn_inception, bn_inception_small
from syncbn.models.mlp import MLP
from syncbn.models.recurrent import gru, lstm
from syncbn.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from syncbn.models.vit import llama_vit, vit

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
NETWORK_HEAD = "| network | input | parameters | multiply-adds | images/s |"
LOADER_HEAD = "| data | images/s | with 2 workers | a network for it | images/s it trains |"
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
    "lstm": (lambda: lstm(image_size=8, **SMALL), DIGIT),
    "gru": (lambda: gru(image_size=8, **SMALL), DIGIT),
    "mlp": (lambda: MLP(image_size=8, **SMALL), DIGIT),
    "deep": (lambda: DeepNet(**SMALL), DIGIT),
    "fcn_resnet18, width=16, stem=cifar": (
        lambda: fcn_resnet18(stem="cifar", width=16, num_classes=11, in_channels=1),
        (1, 32, 32),
    ),
    "fcn_resnet50": (lambda: fcn_resnet50(num_classes=21), IMAGENET),
    "dcgan's generator": (lambda: _small_dcgan().generator, (16,)),
    "dcgan's discriminator": (lambda: _small_dcgan().discriminator, DIGIT),
}
LOADERS: dict[str, tuple[Callable[[Path], GlobalBatchDataModule], str]] = {
    "digits": (lambda _: DigitsDataModule(batch_size=32), "vit, patch_size=2"),
    "digits, augment=false": (lambda _: DigitsDataModule(batch_size=32, augment=False), "dcgan's discriminator"),
    "scenes": (lambda _: ScenesDataModule(batch_size=8), "fcn_resnet18, width=16, stem=cifar"),
    "image_folder, image_size=224": (
        lambda folder: ImageDataModule(folder=str(folder), image_size=224, batch_size=16, num_workers=0),
        "resnet18",
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    rates = {name: training_images_per_second(*made(name)) for name in NETWORKS}
    page = PAGE.read_text()
    for table in (network_table(rates), loader_table(rates)):
        page = with_table(page, table)
    PAGE.write_text(page)


def with_table(page: str, table: str) -> str:
    """Replace the table with the same header in a page.

    Raises:
        ValueError: the page has no such table.
    """
    head = table.splitlines()[0]
    before, found, after = page.partition(head + "\n")
    if not found:
        raise ValueError(f"no table with the head {head!r}")
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return before + table + "".join(rest)


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Build a network; returns it and the shape of an image for it."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    return build(), shape


def network_table(rates: dict[str, float]) -> str:
    """One row per network: input, parameters, multiply-adds of a forward pass, images/s of forward and backward."""
    rows = [NETWORK_HEAD, "|---|---|--:|--:|--:|"]
    for name, rate in rates.items():
        net, shape = made(name)
        parameters, size = sum(p.numel() for p in net.parameters()), "×".join(map(str, shape))
        work = f"{_rounded(multiply_adds(net, shape) / 1e6, 1)} M"
        rows.append(f"| {name} | {size} | {parameters:,} | {work} | {_rounded(rate)} |")
    return "\n".join(rows) + "\n"


def loader_table(rates: dict[str, float]) -> str:
    """One row per loader: images/s in one process and, if supported, with two workers; its network's images/s."""
    rows = [LOADER_HEAD, "|---|--:|--:|---|--:|"]
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(Path(folder))
        for name, (build, network) in LOADERS.items():
            data = build(Path(folder))
            alone, working = loaded_images_per_second(data), ""
            if isinstance(data, ImageDataModule):
                data.num_workers = 2
                working = f"{loaded_images_per_second(data):,.0f}"
            rows.append(f"| {name} | {alone:,.0f} | {working} | {network} | {_rounded(rates[network])} |")
    return "\n".join(rows) + "\n"


def loaded_images_per_second(data: GlobalBatchDataModule) -> float:
    """Fastest of three epochs, from the first batch on, when workers have started."""
    rates = []
    for _ in range(3):
        batches = iter(data.train_dataloader())
        next(batches)
        started = time.perf_counter()
        images = sum(len(labels) for _, labels in batches)
        rates.append(images / (time.perf_counter() - started))
    return max(rates)


def multiply_adds(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one image's forward pass in convolutions, matrix products and attention."""
    net = net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def training_images_per_second(net: nn.Module, shape: tuple[int, ...]) -> float:
    """Fastest of several forward and backward steps, on one CPU thread."""
    net = net.train()
    batch = BATCH if len(shape) == 1 or shape[1] < 100 else 2
    images, times = torch.randn(batch, *shape), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        output: Tensor = net(images)  # logits of images or pixels, or generated images
        output.sum().backward()
        times.append(time.perf_counter() - started)
    return batch / min(times)


def _rounded(number: float, digits: int = 0) -> str:
    """Round with more decimals for smaller numbers."""
    return f"{number:,.{digits}f}" if number >= 10 else f"{number:.{digits + 1}f}"


def _write_photographs(folder: Path, count: int = 256) -> None:
    """Write JPEG files of 256×320 pixels with noise on a ramp; their file size is like that of photographs."""
    from PIL import Image

    random = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 320)[None, :, None]
    for split in ("train", "test"):
        for name in ("even", "odd"):
            (folder / split / name).mkdir(parents=True)
        for i in range(count if split == "train" else 2):
            pixels = (ramp + random.normal(0, 20, (256, 320, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / ("odd" if i % 2 else "even") / f"{i}.jpg")


def _small_dcgan() -> DCGAN:
    return DCGAN(in_channels=1, image_size=8, latent_size=16, width=32, base_size=2)


if __name__ == "__main__":
    main()
