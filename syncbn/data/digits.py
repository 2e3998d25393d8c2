"""scikit-learn's 1,797 handwritten digits of 8×8 pixels; needs no download."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from syncbn.data.augment import RandomAffine
from syncbn.data.base import GlobalBatchDataModule, Part
from syncbn.data.corruptions import Corruptions
from syncbn.data.digits_options import DigitsOptions as Options
from syncbn.norm.core.arguments import check_arguments

BACKGROUND = -1.0  # an empty pixel, after scaling


class DigitsDataModule(GlobalBatchDataModule):
    """scikit-learn's digits as images (N, 1, 8, 8) float32 in [-1, 1] and labels (N) int64.

    The split is stratified by class and fixed by `split_seed`, so every run, on any number of ranks, has the same test
    set. The order of an epoch is a function of (seed, epoch) and the augmentation one of (seed, epoch, index), off for
    validation and test. The loaders are those of `GlobalBatchDataModule`.

    Args:
        batch_size: training samples of one rank in a step; the global batch is this times the number of ranks.
        eval_batch_size: samples of one rank in a validation or test step.
        seed: seed of sample order and augmentation.
        split_seed: seed of the split.
        val_fraction: part of the digits held out for validation.
        test_fraction: part of the digits held out for the test.
        augment: shift, rotate and scale training images slightly.
        max_shift: largest shift in pixels, along each axis.
        max_rotation: largest rotation in degrees, in both directions.
        max_scale: largest relative change of size, up or down.
        drop_last: leave out the last training batch of an epoch when it isn't full, for norms that can't take a batch
            of one sample or none.
        corruptions: a shifted domain: amounts of `syncbn.data.corruptions` by name, for all three parts, after the
            augmentation; {"contrast": 0.4, "brightness": 0.5} turns x into 0.4·x + 0.5.
        shard_by_class: each rank trains only on its own digits: rank r of W on r, r + W, ...

    Raises:
        ValueError: a batch below 1 or larger than the training data, a fraction outside of (0, 1), fractions that leave
            nothing to train on, an augmentation out of range, or an unknown corruption.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, the test part;
    https://archive.ics.uci.edu/dataset/80.
    """

    num_classes = 10
    in_channels = 1
    image_size = (8, 8)
    class_names = tuple("0123456789")

    def __init__(
        self,
        batch_size: int = Options.batch_size,
        eval_batch_size: int = Options.eval_batch_size,
        seed: int = Options.seed,
        split_seed: int = Options.split_seed,
        val_fraction: float = Options.val_fraction,
        test_fraction: float = Options.test_fraction,
        augment: bool = Options.augment,
        max_shift: float = Options.max_shift,
        max_rotation: float = Options.max_rotation,
        max_scale: float = Options.max_scale,
        drop_last: bool = Options.drop_last,
        corruptions: Mapping[str, float] | None = None,
        shard_by_class: bool = Options.shard_by_class,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last, shard_by_class)
        check_arguments(Options, {**locals(), "corruptions": corruptions or {}})
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must be below 1, got {val_fraction} + {test_fraction}; "
                "nothing would be left to train on"
            )
        self.split_seed = split_seed
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.images, self.labels = _load()
        self.augmentation: RandomAffine | None = None
        if augment:
            count = len(self.labels)
            self.augmentation = RandomAffine(count, max_shift, max_rotation, max_scale, seed, fill=BACKGROUND)
        self.corruptions = Corruptions(corruptions or {}, len(self.labels))
        self.train_indices, self.val_indices, self.test_indices = self._split()

    def num_samples(self, part: Part) -> int:
        """Number of digits in a part."""
        return len(self._rows(part))

    def train_classes(self) -> np.ndarray:
        """Digit of each training image."""
        return self.labels[self.train_indices].numpy()

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images (N, 1, 8, 8) and labels (N) of a part, augmented for the epoch in training."""
        rows = self._rows(part)[indices]
        images = self.images[rows]
        if part == "train" and self.augmentation is not None:
            images = self.augmentation(images, rows, epoch)
        return self.corruptions(images, rows), self.labels[rows]

    def _rows(self, part: Part) -> Tensor:
        return {"train": self.train_indices, "val": self.val_indices, "test": self.test_indices}[part]

    def _split(self) -> tuple[Tensor, Tensor, Tensor]:
        from sklearn.model_selection import train_test_split

        count = len(self.labels)
        labels = self.labels.numpy()
        num_val, num_test = round(self.val_fraction * count), round(self.test_fraction * count)
        rest, test = train_test_split(
            np.arange(count), test_size=num_test, stratify=labels, random_state=self.split_seed
        )
        train, val = train_test_split(rest, test_size=num_val, stratify=labels[rest], random_state=self.split_seed)
        return torch.from_numpy(train), torch.from_numpy(val), torch.from_numpy(test)


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install 'syncbn[train]'") from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # the pixels are counts from 0 to 16
    return images, torch.from_numpy(digits.target).long()
