"""Fashion-MNIST, 70,000 grey images of clothes of 28×28 pixels, from a Debian package or the Hugging Face hub."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syncbn.data.base import GlobalBatchDataModule, Part
from syncbn.data.corruptions import Corruptions
from syncbn.data.decoding import decode
from syncbn.data.fashion_mnist_options import FashionMNISTOptions as Options
from syncbn.data.idx import read_idx
from syncbn.data.image_splits import load_splits
from syncbn.norm.core.arguments import check_arguments

PACKAGE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts its files
SOURCE = "zalando-datasets/fashion_mnist"  # on the hub
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# Checksum of the concatenated values. MNIST and its relatives come in files of the same names and sizes.
_SHA256 = "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f"
_ADVICE = (
    "`apt-get install dataset-fashion-mnist` gets it on Debian and Ubuntu, and data.folder=<path> takes the four files "
    "of https://github.com/zalandoresearch/fashion-mnist from a folder"
)


class FashionMNISTDataModule(GlobalBatchDataModule):
    """Fashion-MNIST as images (N, 1, 28, 28) float32 in [-1, 1] and labels (N) int64.

    The test part is the authors' 10,000 test images. Of the other 60,000, `val_fraction` are held out for validation
    (the same number of each class, fixed by `split_seed`): select models there. `small` takes the first images of the
    rest in an order that is also fixed by `split_seed`. Every prefix of that order has balanced classes, so a smaller
    subset is part of a larger one. The order of an epoch is a function of (seed, epoch). The loaders are those of
    `GlobalBatchDataModule`.

    Args:
        batch_size: training samples of one rank in a step; the global batch is this times the number of ranks.
        eval_batch_size: samples of one rank in a validation or test step.
        seed: seed of the sample order.
        split_seed: seed of the validation part and of the subset.
        folder: folder of the four files, compressed or not; None for Debian's package or, where it isn't installed, the
            Hugging Face hub.
        val_fraction: part of the 60,000 images held out for validation.
        small: number of training images; None for all that aren't held out.
        drop_last: leave out the last training batch of an epoch when it isn't full.
        corruptions: a shifted domain: amounts and severities of `syncbn.data.corruptions` by name, for all three parts.
        shard_by_class: each rank trains only on its own classes: rank r of W on r, r + W, ...

    Raises:
        ValueError: a batch below 1 or larger than the training data; a fraction outside (0, 1); more images than there
            are; an unknown corruption; no data set, or a different one.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747; MIT licence.
    """

    num_classes = 10
    in_channels = 1
    image_size = (28, 28)
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )

    def __init__(
        self,
        batch_size: int = Options.batch_size,
        eval_batch_size: int = Options.eval_batch_size,
        seed: int = Options.seed,
        split_seed: int = Options.split_seed,
        folder: str | None = Options.folder,
        val_fraction: float = Options.val_fraction,
        small: int | None = Options.small,
        drop_last: bool = Options.drop_last,
        corruptions: Mapping[str, float] | None = None,
        shard_by_class: bool = Options.shard_by_class,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last, shard_by_class)
        check_arguments(Options, {**locals(), "corruptions": corruptions or {}})
        self.split_seed = split_seed
        self.val_fraction = val_fraction
        self.small = small
        self.images, self.labels, self.test_start = _load(folder)
        self.corruptions = Corruptions(corruptions or {}, len(self.labels))
        self.train_indices, self.val_indices = self._split()
        self.test_indices = torch.arange(self.test_start, len(self.labels))

    def num_samples(self, part: Part) -> int:
        """Number of images in a part."""
        return len(self._rows(part))

    def train_classes(self) -> np.ndarray:
        """Class of each training image."""
        return self.labels[self.train_indices].numpy()

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images (N, 1, 28, 28) and labels (N) of a part, the same in every epoch."""
        rows = self._rows(part)[indices]
        return self.corruptions(self.images[rows].float() / 127.5 - 1, rows), self.labels[rows]

    def _rows(self, part: Part) -> Tensor:
        return {"train": self.train_indices, "val": self.val_indices, "test": self.test_indices}[part]

    def _split(self) -> tuple[Tensor, Tensor]:
        """Training and validation indices, from the end and the start of an order with balanced prefixes."""
        order = _balanced_order(self.labels[: self.test_start].numpy(), self.split_seed)
        held_out = max(1, round(self.val_fraction * len(order)))
        train, val = order[:-held_out], order[-held_out:]
        if self.small is not None and self.small > len(train):
            raise ValueError(f"small must be at most the {len(train)} training images that there are, got {self.small}")
        return torch.from_numpy(train[: self.small]), torch.from_numpy(val)


def _balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Random order of the samples in which every class comes once before any class comes twice, and so on."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    turns = np.empty(len(labels), dtype=np.int64)  # number of earlier samples of the same class
    for label in np.unique(labels):
        of_class = labels[order] == label
        turns[of_class] = np.arange(of_class.sum())
    return order[np.lexsort((generator.random(len(labels)), turns))]


@functools.lru_cache(maxsize=1)
def _load(folder: str | None) -> tuple[Tensor, Tensor, int]:
    """Images (70,000, 1, 28, 28) uint8, labels (70,000) int64, first test index. Cached: don't write to them."""
    if folder is None and not PACKAGE.is_dir():
        arrays, place = _from_hub(), f"{SOURCE} of the hub"
    else:
        place = str(PACKAGE if folder is None else Path(folder).absolute())
        arrays = [_from_file(Path(place), name) for name in _FILES]
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    if found.hexdigest() != _SHA256:
        raise ValueError(f"{place} isn't Fashion-MNIST: its values have another checksum. {_ADVICE}")
    train_images, train_labels, test_images, test_labels = arrays
    images = torch.from_numpy(np.concatenate([train_images, test_images])).unsqueeze(1)
    return images, torch.from_numpy(np.concatenate([train_labels, test_labels])).long(), len(train_labels)


def _from_file(folder: Path, name: str) -> np.ndarray:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return read_idx(path)
    raise ValueError(f"no file {name} or {name}.gz in {folder}: {_ADVICE}")


def _from_hub() -> list[np.ndarray]:
    """Load it with `datasets`, from its cache or the hub."""
    try:
        splits = load_splits(SOURCE, None, "image", streaming=False)
    except (ValueError, ModuleNotFoundError) as error:
        raise ValueError(f"Fashion-MNIST isn't here, nor to be had from the hub: {_ADVICE}") from error
    arrays = []
    for name in ("train", "test"):
        images = [np.asarray(decode(image, name, 1, (28, 28), "raise")) for image in splits[name]["image"]]
        arrays += [np.concatenate(images), np.asarray(splits[name]["label"], dtype=np.uint8)]
    return arrays
