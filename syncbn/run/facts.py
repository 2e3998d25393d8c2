"""What a network and a task ask of the data: sizes, names, an example."""

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


class DataFacts:
    """Sizes and names of a DataModule of anybody's: what it says of itself, else what its first batch shows.

    A DataModule says `num_classes`, `in_channels`, `image_size` or `class_names` by an attribute, a property or a
    hyper-parameter of that name. The first training batch is only made where something is missing, on each rank for
    itself and before the ranks meet: `prepare_data` is called by one rank of a node after the other. Making it leaves
    the random generators as they were.
    """

    def __init__(self, data: LightningDataModule) -> None:
        self.data = data

    def stated(self, name: str) -> Any:
        """What the DataModule itself says; None where it doesn't."""
        value = None
        with suppress(Exception):  # a property that needs `setup` first
            value = getattr(self.data, name, None)
        return self.data.hparams.get(name) if value is None else value

    @property
    def num_classes(self) -> int | None:
        """How many there are; a batch doesn't show it, but the names or the data set may."""
        stated = self.stated("num_classes")
        if stated is None:
            names = self.class_names
            stated = self.stated("num_classes") if names is None else len(names)  # set up by now
        return stated

    @property
    def in_channels(self) -> int | None:
        """The size of an input's first dimension after that of the samples."""
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
        """From the DataModule, or `classes` of its data set, as torchvision's have."""
        names = self.stated("class_names")
        if names is None:
            dataset: Any = getattr(_first(self.train_loader), "dataset", None)
            while hasattr(dataset, "dataset") and not hasattr(dataset, "classes"):  # a subset
                dataset = dataset.dataset
            names = getattr(dataset, "classes", None)
        return [str(name) for name in names] if isinstance(names, list | tuple) else None

    @property
    def example(self) -> Tensor | None:
        """An input of the network, of one sample or more; None where the first batch is no pair that begins with it."""
        channels, size = self.stated("in_channels"), self.stated("image_size")
        if channels is not None and size is not None:
            return torch.zeros(1, channels, *((size, size) if isinstance(size, int) else size))
        return None if self._shape is None else self._inputs

    @cached_property
    def first_batch(self) -> Any:
        """The first training batch, of the first loader where there are several.

        Raises:
            ValueError: it can't be made.
        """
        loader = _first(self.train_loader)
        try:
            with isolate_rng():
                batch = _made(loader)
                batch = self.data.on_before_batch_transfer(batch, 0)
                return self.data.on_after_batch_transfer(batch, 0)
        except Exception as error:
            raise ValueError(f"{self._problem}: {type(error).__name__}: {error}") from error

    @cached_property
    def train_loader(self) -> Any:
        """What the DataModule's `train_dataloader` returns.

        Raises:
            ValueError: it can't be made.
        """
        try:
            with isolate_rng():
                if is_overridden("prepare_data", self.data):
                    in_turn(self.data.prepare_data)
                self.data.setup("fit")
                return self.data.train_dataloader()
        except Exception as error:
            raise ValueError(f"{self._problem}: {type(error).__name__}: {error}") from error

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


def _made(loader: Any) -> Any:
    """A loader's first batch, made here and not in its workers, which would have to be started for it."""
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
