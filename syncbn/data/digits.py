"""1,797 real handwritten digits of 8×8 pixels that come with scikit-learn, so no network is needed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from syncbn.data.augment import RandomAffine
from syncbn.data.corruptions import Corruptions
from syncbn.data.loader import BatchLoader
from syncbn.data.sampler import GlobalBatchSampler

BACKGROUND = -1.0  # an empty pixel, after scaling


class DigitsDataModule(LightningDataModule):
    """scikit-learn's digits as images (N, 1, 8, 8) float32 in [-1, 1] and labels (N) int64.

    The split is stratified by class and fixed by `split_seed`, so every run, on any number of ranks, has the same test
    set. The order of an epoch is a function of (seed, epoch) and the augmentation one of (seed, epoch, index), off for
    validation and test. Use it with `Trainer(use_distributed_sampler=False)`: each rank takes its own part of the
    global batch here, without padding.

    Args:
        batch_size: training samples of one rank in a step; the global batch is this times the number of ranks.
        eval_batch_size: samples of one rank in a validation or test step.
        seed: of order and augmentation.
        split_seed: of the split.
        val_fraction: part of the digits held out for validation.
        test_fraction: part of the digits held out for the test.
        augment: shift, turn and scale training images a little.
        max_shift: in pixels, each way.
        max_rotation: in degrees, each way.
        max_scale: relative, larger or smaller.
        drop_last: leave out the last training batch of an epoch when it isn't full, for norms that can't take a batch
            of one sample or none.
        corruptions: another domain: amounts of `syncbn.data.corruptions` by name, for all three parts, after the
            augmentation; {"contrast": 0.4, "brightness": 0.5} makes x into 0.4·x + 0.5.

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
        batch_size: int = 32,
        eval_batch_size: int = 128,
        seed: int = 0,
        split_seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        augment: bool = True,
        max_shift: float = 1.0,
        max_rotation: float = 10.0,
        max_scale: float = 0.1,
        drop_last: bool = False,
        corruptions: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, fraction in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {fraction}")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must be below 1, got {val_fraction} + {test_fraction}; "
                "nothing would be left to train on"
            )
        for name, (limit, above) in {
            "max_shift (pixels)": (max_shift, 8.0),
            "max_rotation (degrees)": (max_rotation, 180.0),
            "max_scale": (max_scale, 1.0),
        }.items():
            if not 0 <= limit < above:
                raise ValueError(f"{name} must be at least 0 and below {above:g}, got {limit}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.split_seed = split_seed
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.drop_last = drop_last
        self._train_loader: BatchLoader | None = None
        self._train_loader_state: dict[str, Any] | None = None
        self.images, self.labels = _load()
        self.augmentation: RandomAffine | None = None
        if augment:
            count = len(self.labels)
            self.augmentation = RandomAffine(count, max_shift, max_rotation, max_scale, seed, fill=BACKGROUND)
        self.corruptions = Corruptions(corruptions or {}, len(self.labels))
        self.train_indices, self.val_indices, self.test_indices = self._split()

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of this rank, augmented."""
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        sampler = GlobalBatchSampler(
            len(self.train_indices),
            self.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            shuffle=not overfit,  # to overfit a batch is to see the same one again
            seed=self.seed,
            drop_last=self.drop_last,
        )
        self._train_loader = BatchLoader(self._fetch_train, sampler)
        if self._train_loader_state is not None:
            self._train_loader.load_state_dict(self._train_loader_state)
            self._train_loader_state = None
        return self._train_loader

    def val_dataloader(self) -> BatchLoader:
        """Each validation sample once, over all ranks."""
        return self._eval_loader(self.val_indices)

    def test_dataloader(self) -> BatchLoader:
        """Each test sample once, over all ranks."""
        return self._eval_loader(self.test_indices)

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, for a checkpoint.

        Lightning restores a loader by itself only if it is made after the checkpoint is read, and asking for the number
        of steps, as a learning-rate schedule does, makes it before.
        """
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make the next training loader start where the checkpoint's stopped."""
        self._train_loader_state = state_dict.get("train_loader")

    def _eval_loader(self, part: Tensor) -> BatchLoader:
        def fetch(indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
            rows = part[indices]
            return self.corruptions(self.images[rows], rows), self.labels[rows]

        # A part smaller than one batch is one batch: nothing is learned from it, so its size doesn't matter.
        batch_size = min(self.eval_batch_size, max(1, len(part) // self._world_size))
        return BatchLoader(fetch, GlobalBatchSampler(len(part), batch_size, self._rank, self._world_size))

    def _fetch_train(self, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        rows = self.train_indices[indices]
        images = self.images[rows]
        if self.augmentation is not None:
            images = self.augmentation(images, rows, epoch)
        return self.corruptions(images, rows), self.labels[rows]

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

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install 'syncbn[train]'") from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # the pixels are counts from 0 to 16
    return images, torch.from_numpy(digits.target).long()
