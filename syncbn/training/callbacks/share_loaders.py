"""Division of a user's loaders over the ranks."""

import hashlib
import os
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from syncbn.data.loader import BatchLoader
from syncbn.data.shared import SharedBatches, shared
from syncbn.launch.faults import Fault
from syncbn.training.connected import connected
from syncbn.training.host_group import host_group

_ENOUGH = 16  # integers, such as labels, by which different batches aren't equal by chance
_PIECES = 4096  # numbers of a tensor to compare


class SameBatches(Fault, ValueError):
    """Ranks train on the same samples."""


class ShareLoaders(L.Callback):
    """Divides a DataModule's DataLoaders over the ranks, and checks that ranks don't train on the same batches.

    It replaces `Trainer(use_distributed_sampler=True)`, which pads: no sample counts twice in an evaluation, and two
    ranks of 16 samples see the same as one rank of 32 (see `syncbn.data.shared.SharedBatches`). Batch size, workers and
    other settings of a loader are kept. Loaders that already divide their data aren't changed: ours, and those with a
    `DistributedSampler`.

    The division of an `IterableDataset` or another kind of loader can't be seen from outside. So the ranks compare
    their first two batches, and the training ends if they are equal.

    Args:
        share: False to change no loader and only compare.

    Raises:
        SameBatches: in a fit, on all ranks.
    """

    def __init__(self, share: bool = True) -> None:
        self.share = share
        self._seen: list[tuple[str, str | None]] = []
        self._validated: list[tuple[str, str | None]] = []
        self._compares = False
        self._told: set[str] = set()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Divide each loader when the trainer prepares it."""
        if self.share and trainer.world_size > 1:
            trainer._data_connector._prepare_dataloader = partial(self._prepared, trainer)  # type: ignore[method-assign]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the trainer."""
        trainer._data_connector.__dict__.pop("_prepare_dataloader", None)

    def _prepared(self, trainer: L.Trainer, dataloader: object, shuffle: bool, mode: RunningStage) -> object:
        if not isinstance(dataloader, DataLoader):
            return dataloader
        if mode == RunningStage.PREDICTING:  # Lightning tracks the samples
            return type(trainer._data_connector)._prepare_dataloader(trainer._data_connector, dataloader, shuffle, mode)
        training = mode == RunningStage.TRAINING
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        made = shared(dataloader, trainer.global_rank, trainer.world_size, seed, training)
        batches = _shares(made)
        if batches is not None and (left_out := batches.left_out):
            what = "batches" if batches.batch_size is None else "samples"
            self._tell(
                f"{left_out} of {len(batches.order)} {what} are left out of each training epoch: {trainer.world_size} "
                "ranks can't share them"
            )
        return made

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn about an order that can't be resumed in the middle of an epoch."""
        loaders = trainer.fit_loop._combined_loader
        flat = [] if loaders is None else loaders.flattened
        self._compares = trainer.world_size > 1 and not all(isinstance(loader, BatchLoader) for loader in flat)
        self._seen = []
        if trainer.current_epoch and any(_shares(loader) for loader in flat):
            for loader in flat:
                _set_sampler_epoch(loader, trainer.current_epoch)
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]  # its workers have begun with another epoch
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if progress.is_last_batch else progress.current.processed  # type: ignore[attr-defined]
        if done and not all(hasattr(loader, "load_state_dict") for loader in flat):
            rank_zero_warn(
                f"the run goes on after {done} batches of an epoch, and its loader can't: the epoch ends with batches "
                "from the loader's beginning, some of them seen before"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare the first two batches."""
        if not self._compares or len(self._seen) == 2 or connected(trainer).overfit_batches:
            return
        self._seen.append(_digests(batch))
        if len(self._seen) == 2 and (found := _equal_ranks(self._seen)):
            what, (first, second) = found
            text = f"ranks {first} and {second} train on the same {what}; {_ADVICE}"
            if what == "batches":
                raise SameBatches(text)
            self._tell(text)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restart the comparison."""
        self._validated = []

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the first two batches; ranks may have unequal numbers."""
        if self._compares and len(self._validated) < 2 and dataloader_idx == 0:
            self._validated.append(_digests(batch))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the recorded batches."""
        if self._compares and not trainer.sanity_checking and (found := _equal_ranks(self._validated)):
            what, (first, second) = found
            self._tell(f"ranks {first} and {second} validate on the same {what}, which count twice; {_ADVICE}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            rank_zero_warn(text)


def _shares(loader: Any) -> SharedBatches | None:
    """A loader's batches, if they are one rank's share of another loader's."""
    found = (getattr(loader, name, None) for name in ("batch_sampler", "sampler"))
    return next((one for one in found if isinstance(one, SharedBatches)), None)


def _equal_ranks(seen: list[tuple[str, str | None]]) -> tuple[str, tuple[int, int]] | None:
    """Find two ranks with equal "batches" or "labels"; called by all ranks."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, seen, group=host_group())
    for part, what in enumerate(("batches", "labels")):
        owners: dict[tuple[Any, ...], int] = {}
        for rank, batches in enumerate(every):
            parts = tuple(batch[part] for batch in batches)
            # Equal batches on one rank, such as constants, are inconclusive.
            if len(set(parts)) < 2 or None in parts:
                continue
            if parts in owners:
                return what, (owners[parts], rank)
            owners[parts] = rank
    return None


def _digests(batch: Any) -> tuple[str, str | None]:
    """Digests of a whole batch, and of only its integers: labels, which augmentation doesn't change.

    The latter is None if there are too few to distinguish batches.
    """
    whole, labels = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    numbers = 0

    def add(value: Any) -> Any:
        nonlocal numbers
        if isinstance(value, Tensor):
            flat = value.detach().flatten()
            flat = flat[:: max(1, flat.numel() // _PIECES)]
            if not (flat.is_floating_point() or flat.is_complex()) and flat.numel() and bool((flat != flat[0]).any()):
                numbers += flat.numel()
                labels.update(repr(flat.tolist()).encode())
            value = (tuple(value.shape), flat.double().sum().item() if flat.is_complex() else flat.tolist())
        whole.update(repr(value).encode())
        return value

    apply_to_collection(batch, dtype=(Tensor, str, int, float), function=add)
    return whole.hexdigest(), labels.hexdigest() if numbers >= _ENOUGH else None


_ADVICE = (
    "let the data set yield every world_size-th sample only, beginning with the rank's (self.trainer.global_rank and "
    "self.trainer.world_size in the DataModule), or give its loader a DistributedSampler"
)
