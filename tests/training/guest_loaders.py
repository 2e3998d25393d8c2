"""DataModules of anybody's on ranks: trainings that note which samples each rank sees."""

import multiprocessing
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from syncbn.training import ExactResume, ShareLoaders
from tests.training import fits


def numbers(size: int) -> TensorDataset:
    """Samples that are told apart by their only number."""
    return TensorDataset(torch.arange(float(size))[:, None])


class Stream(IterableDataset[Any]):
    """The same samples for each rank, unless it shares them."""

    def __init__(self, size: int, shares: bool = False) -> None:
        self.size, self.shares = size, shares

    def __iter__(self) -> Iterator[Any]:
        own = range(torch.distributed.get_rank(), self.size, 2) if self.shares else range(self.size)
        return iter([(torch.tensor([float(number)]),) for number in own])


class Data(L.LightningDataModule):
    """Loaders of one kind."""

    def __init__(self, kind: str, workers: int = 0) -> None:
        super().__init__()
        self.kind = kind
        if workers:  # which the ranks of a pool, being daemons, may not have
            multiprocessing.current_process()._config["daemon"] = False
        self.options: Any = {"num_workers": workers, "persistent_workers": workers > 0}

    def train_dataloader(self) -> Any:
        shuffled = DataLoader(numbers(26), 3, shuffle=True, **self.options)
        return {
            "one": lambda: shuffled,
            "list": lambda: [shuffled, DataLoader(numbers(12), 2, **self.options)],
            "dict": lambda: {"a": shuffled, "b": DataLoader(numbers(12), 2, shuffle=True, **self.options)},
            "combined": lambda: CombinedLoader({"a": shuffled, "b": DataLoader(numbers(12), 2)}, "min_size"),
            "stream": lambda: DataLoader(Stream(26), 3),
            "shared stream": lambda: DataLoader(Stream(26, shares=True), 3),
            "no DataLoader": Batches,
            "constant": lambda: DataLoader(TensorDataset(torch.zeros(26, 1)), 3),
            "augmented": lambda: DataLoader(Augmented(), 16),
        }[self.kind]()

    def val_dataloader(self) -> Any:
        if self.kind == "list":
            return [DataLoader(numbers(5), 2), DataLoader(numbers(9), 2)]
        if self.kind == "shared stream":
            return DataLoader(Stream(9), 2)
        return DataLoader(numbers(9), 2)


class Batches:
    """Batches of another kind of loader."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.full((3, 1), float(i)),) for i in range(4)])


class Augmented(IterableDataset[Any]):
    """The same labels on each rank, with other noise."""

    def __iter__(self) -> Iterator[Any]:
        rank = torch.distributed.get_rank()
        generator = torch.Generator().manual_seed(rank)
        for number in range(64):
            yield torch.rand(1, generator=generator), torch.tensor(number % 5 * 7 % 11 + number // 16)


class Notes(L.LightningModule):
    """Notes the samples of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.trained: list[list[Any]] = []
        self.validated: list[list[Any]] = []

    def on_train_epoch_start(self) -> None:
        self.trained.append([])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.trained[-1].append(_numbers(batch))
        return self.layer(torch.ones(1, 1)).sum()

    def on_validation_epoch_start(self) -> None:
        self.validated.append([])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated[-1].append(_numbers(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _numbers(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _numbers(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not isinstance(batch[0], Tensor):
        return [_numbers(value) for value in batch]
    return batch[0].flatten().tolist()


def trained(kind: str, epochs: int = 2, workers: int = 0, **options: Any) -> dict[str, Any]:
    """What this rank has seen, or the error that ended it."""
    notes, told = Notes(), []
    with fits.launched():
        trainer = fits.trainer(max_epochs=epochs, callbacks=[ShareLoaders()], **options)
        try:
            trainer.fit(notes, Data(kind, workers))
        except ValueError as error:
            told.append(f"{type(error).__name__}: {error}")
    return {"trained": notes.trained, "validated": notes.validated, "error": told}


def resumed(folder: str, workers: int, stop_at: int) -> dict[str, Any]:
    """Trained for `stop_at` steps and on from there to three epochs of five, beside a run that goes through."""
    with fits.launched():
        whole, first, second = Notes(), Notes(), Notes()
        fits.trainer(max_epochs=3, callbacks=[ShareLoaders(), ExactResume()]).fit(whole, Data("one", workers))
        trainer = fits.trainer(max_steps=stop_at, callbacks=[ShareLoaders(), ExactResume()])
        trainer.fit(first, Data("one", workers))
        trainer.save_checkpoint(f"{folder}/c.ckpt")
        going_on = fits.trainer(max_epochs=3, callbacks=[ShareLoaders(), ExactResume()])
        going_on.fit(second, Data("one", workers), ckpt_path=f"{folder}/c.ckpt")
    return {"whole": whole.trained, "first": first.trained, "second": second.trained}


def overfit() -> dict[str, Any]:
    """Two epochs of one batch."""
    notes = Notes()
    with fits.launched(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You requested to overfit but enabled")
        fits.trainer(max_epochs=2, overfit_batches=1, callbacks=[ShareLoaders()]).fit(notes, Data("one"))
    return {"trained": notes.trained}
