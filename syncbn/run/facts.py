"""Facts about the data for network and task: sizes, names, an example."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from syncbn.launch.turns import in_turn
from syncbn.run.targets import users_line


class DataFacts:
    """Sizes and names of any DataModule, from its attributes or else its first batch.

    A DataModule states `num_classes`, `in_channels`, `image_size` or `class_names` by an attribute, a property or a
    hyper-parameter of that name. The first training batch is loaded only if something is missing, on each rank
    separately and before the ranks meet: the ranks of a node call `prepare_data` one after the other. Random generators
    are restored afterwards.
    """

    def __init__(self, data: LightningDataModule) -> None:
        self.data = data

    def stated(self, name: str) -> Any:
        """Value stated by the DataModule; None if there is none."""
        value = None
        with suppress(Exception):  # a property that needs `setup` first
            value = getattr(self.data, name, None)
        if value is None or callable(value):  # a method of the name
            value = self.data.hparams.get(name)
        return _plain(value)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, as stated, or from the names or the data set; a batch doesn't show it."""
        stated = self.stated("num_classes")
        if stated is None:
            names = self.class_names
            stated = self.stated("num_classes") if names is None else len(names)  # set up by now
        return stated

    @property
    def in_channels(self) -> int | None:
        """Size of an input's first dimension after the batch."""
        stated = self.stated("in_channels")
        return stated if stated is not None or self._shape is None else self._shape[0]

    @property
    def image_size(self) -> tuple[int, ...] | None:
        """(height, width)."""
        stated = self.stated("image_size")
        if isinstance(stated, int):
            return (stated, stated)
        if stated is None and self._shape is not None and len(self._shape) > 1:
            return self._shape[1:]
        return stated

    @property
    def class_names(self) -> list[str] | None:
        """Class names of the DataModule, or `classes` of its data set, as in torchvision."""
        names = self.stated("class_names")
        if names is None:
            dataset: Any = getattr(_first(self.train_loader), "dataset", None)
            while hasattr(dataset, "dataset") and not hasattr(dataset, "classes"):  # a subset
                dataset = dataset.dataset
            names = _plain(getattr(dataset, "classes", None))
        return [str(name) for name in names] if isinstance(names, list | tuple) else None

    @property
    def example(self) -> Tensor | None:
        """Example input of the network; None if the first batch isn't a pair that begins with it."""
        channels, size = self.stated("in_channels"), self.stated("image_size")
        if channels is not None and size is not None:
            return torch.zeros(1, channels, *((size, size) if isinstance(size, int) else size))
        return None if self._shape is None else self._inputs

    @cached_property
    def first_batch(self) -> Any:
        """First training batch, of the first loader if there are several.

        Raises:
            ValueError: it can't be created.
        """
        loader = _first(self.train_loader)
        try:
            with isolate_rng():
                batch = _made(loader)
                batch = self.data.on_before_batch_transfer(batch, 0)
                return self.data.on_after_batch_transfer(batch, 0)
        except Exception as error:
            raise ValueError(f"{self._problem}: {type(error).__name__}: {error}{users_line(error)}") from error

    @cached_property
    def train_loader(self) -> Any:
        """Result of the DataModule's `train_dataloader`.

        Raises:
            ValueError: it can't be created.
        """
        try:
            with isolate_rng():
                if is_overridden("prepare_data", self.data):
                    in_turn(self.data.prepare_data)
                self.data.setup(stage="fit")  # by its keyword, as Lightning does
                return self.data.train_dataloader()
        except Exception as error:
            raise ValueError(f"{self._problem}: {type(error).__name__}: {error}{users_line(error)}") from error

    @property
    def _problem(self) -> str:
        return (
            f"can't make a first batch of {type(self.data).__name__}, to see what it doesn't say of itself "
            "(num_classes, in_channels, image_size)"
        )

    @property
    def _inputs(self) -> Any:
        batch = self.first_batch
        return batch[0] if isinstance(batch, list | tuple) and len(batch) > 1 else batch

    @property
    def _shape(self) -> tuple[int, ...] | None:
        inputs = self._inputs
        return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) and inputs.dim() > 1 else None


def _plain(value: Any) -> Any:
    """A number or an array of NumPy's or torch's as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _made(loader: Any) -> Any:
    """First batch of a loader, made in this process instead of starting its workers."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return next(iter(loader))
    if loader.batch_sampler is None:
        index = next(iter(loader.sampler))
        return loader.collate_fn(loader.dataset[index])
    indices = next(iter(loader.batch_sampler))
    dataset = loader.dataset
    samples = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]
    return loader.collate_fn(samples)


def _first(loaders: Any) -> Any:
    """The first of nested loaders."""
    if isinstance(loaders, CombinedLoader):
        return loaders.flattened[0]
    if isinstance(loaders, Mapping):
        return _first(next(iter(loaders.values())))
    if isinstance(loaders, list | tuple):
        return _first(loaders[0])
    return loaders
