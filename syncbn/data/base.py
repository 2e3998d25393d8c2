"""Base class of the DataModules: splits global batches over the ranks and resumes in the middle of an epoch."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor

from syncbn.data.loader import BatchLoader, IndexedLoader
from syncbn.data.sampler import ClassShardSampler, GlobalBatchSampler
from syncbn.data.shared_options import OfClasses
from syncbn.norm.core.arguments import check_arguments

Part = Literal["train", "val", "test"]


class GlobalBatchDataModule(LightningDataModule):
    """Base DataModule with loaders over `fetch`, for data that is cheap to turn into a batch.

    Use it with `Trainer(use_distributed_sampler=False)`: it gives each rank its part of the global batch, without
    padding. A subclass defines the number of samples of each part and the contents of a batch.

    Args:
        batch_size: training samples of one rank in a step; the global batch is this times the number of ranks.
        eval_batch_size: samples of one rank in a validation or test step.
        seed: seed of the sample order.
        drop_last: leave out the last training batch of an epoch when it isn't full.
        shard_by_class: each rank trains on its own classes alone: rank r of W on the classes r, r + W, ... A rank's
            batch statistics are then those of its classes; synchronized ones are those of all.

    Raises:
        ValueError: a batch below 1.
    """

    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    class_names: tuple[str, ...]

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        drop_last: bool,
        shard_by_class: bool = OfClasses.shard_by_class,
    ) -> None:
        super().__init__()
        check_arguments(OfClasses, locals())
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.shard_by_class = shard_by_class
        self._train_loader: BatchLoader | None = None
        self._train_loader_state: dict[str, Any] | None = None

    def num_samples(self, part: Part) -> int:
        """Number of samples in a part."""
        raise NotImplementedError

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and labels of a part's samples in an epoch."""
        raise NotImplementedError

    def train_classes(self) -> np.ndarray:
        """Class of each training sample, for `shard_by_class`."""
        raise NotImplementedError

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of this rank, augmented."""
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        options: Any = {
            "rank": self._rank,
            "world_size": self._world_size,
            "shuffle": not overfit,  # overfitting needs the same batch every epoch
            "seed": self.seed,
            "drop_last": self.drop_last,
        }
        if self.shard_by_class:
            sampler: GlobalBatchSampler = ClassShardSampler(self.train_classes(), self.batch_size, **options)
        else:
            sampler = GlobalBatchSampler(self.num_samples("train"), self.batch_size, **options)
        return self._resumed(IndexedLoader(_Fetch(self, "train"), sampler))

    def val_dataloader(self) -> BatchLoader:
        """Each validation sample once across all ranks."""
        return self._eval_loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Each test sample once across all ranks."""
        return self._eval_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch, for a checkpoint.

        Lightning restores a loader only if it is created after the checkpoint is read. A learning-rate schedule that
        asks for the number of steps creates it earlier.
        """
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make the next training loader start at the checkpoint's position."""
        self._train_loader_state = state_dict.get("train_loader")

    def _resumed(self, loader: BatchLoader) -> BatchLoader:
        """Move the training loader to the position of the loaded checkpoint, if there is one."""
        self._train_loader = loader
        limit: int | float = getattr(self.trainer, "limit_train_batches", 1.0)
        loader.limit = min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)
        if self._train_loader_state is not None:
            loader.load_state_dict(self._train_loader_state)
            self._train_loader_state = None
        return loader

    def _eval_loader(self, part: Part) -> BatchLoader:
        # A part smaller than one batch becomes one batch. It isn't trained on, so its size doesn't matter.
        size = self.num_samples(part)
        batch_size = min(self.eval_batch_size, max(1, size // self._world_size))
        return IndexedLoader(_Fetch(self, part), GlobalBatchSampler(size, batch_size, self._rank, self._world_size))

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size


@dataclass(frozen=True)
class _Fetch:
    """`fetch` of a part.

    A worker that isn't forked, as from Python 3.14 on, is sent the data module: without its trainer, which can't be.
    """

    data: GlobalBatchDataModule
    part: Part

    def __call__(self, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        return self.data.fetch(self.part, indices, epoch)

    def __reduce__(self) -> tuple[Any, ...]:
        data = copy.copy(self.data)
        data.trainer = data._train_loader = None
        return _Fetch, (data, self.part)
