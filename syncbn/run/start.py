"""Checks between building a run and starting it, which report mistakes in one line before any training."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import Tensor

from syncbn.norm.core.groups import check_size
from syncbn.norm.core.options import suggest
from syncbn.run import tasks
from syncbn.run.elastic import batch_size_of_a_rank
from syncbn.run.facts import DataFacts
from syncbn.run.limits import batch_mistakes
from syncbn.run.network import SIZES
from syncbn.run.resume import Checkpoint
from syncbn.training import ClassificationTask, Monitors, SegmentationTask
from syncbn.training.callbacks.found import callbacks_of
from syncbn.training.optim import parameter_groups
from syncbn.training.schedule import takes_total_steps


def fit_batches_to_ranks(
    config: DictConfig, data: LightningDataModule, trainer: Trainer, checkpoint: Checkpoint | None
) -> None:
    """Adapt the batch size of a run resumed on another number of ranks, according to `elastic`.

    Raises:
        ValueError: `elastic` is "refuse", the ranks can't share the global batches, or the data's loader ignores it.
    """
    facts = DataFacts(data)
    stated: int | None = facts.stated("batch_size")
    size = batch_size_of_a_rank(stated, trainer.world_size, checkpoint, config.elastic)
    if size == stated:
        return
    data.batch_size = size  # type: ignore[attr-defined]
    if "batch_size" in data.hparams:
        data.hparams["batch_size"] = size
    if (made := getattr(facts.train_loader, "batch_size", size)) != size and not is_ours(config):
        raise ValueError(
            f"the run goes on, and each rank needs batches of {size}, but {type(data).__name__} makes them of {made} "
            "whatever its batch_size says: start the ranks, and give the batch size, that it had"
        )
    if "batch_size" in config.data:
        config.data.batch_size = size  # recorded in the run's folder, too


def take_up(trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    """Let callbacks take over the decisions of the resumed run."""
    for callback in callbacks_of(trainer, Monitors):
        if checkpoint is not None:
            callback.take_up(checkpoint.monitors)


@contextmanager
def past_its_end(trainer: Trainer, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Train nothing where the resumed run has more epochs than `trainer.max_epochs`; Lightning refuses two more."""
    asked, begun = trainer.max_epochs, checkpoint.epochs if checkpoint else 0
    if asked is not None and 0 <= asked < begun:
        trainer.fit_loop.max_epochs = max(asked, begun - 1)
    try:
        yield
    finally:
        trainer.fit_loop.max_epochs = asked


def stand_at_the_end(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Count the epoch and the batch in which a run ended that had nothing left to train, as at the end of its training.

    Lightning counts both after the checkpoint is saved, and the rows of a test are written under these numbers.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    epochs.processed = epochs.completed = max(epochs.completed, checkpoint.epochs)
    trainer.fit_loop.epoch_loop._batches_that_stepped = checkpoint.logged_steps


def check_start(
    config: DictConfig,
    task: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    *,
    facts: DataFacts | None = None,
) -> None:
    """Create optimizer and training loader once before the fit, to report errors as the user's mistakes.

    Raises:
        ValueError: the ranks' batches don't fit the data, the ranks can't be divided into groups for the norms,
            the model is given other sizes than the data's, validation would come after the end of an epoch, the
            optimizer doesn't take its options, a callback monitors what the task doesn't log, or batches aren't what
            the task takes.
    """
    check_size(config.norm.get("sync_group", "world"), trainer.world_size)
    data.trainer = trainer
    if not task.automatic_optimization and config.trainer.gradient_clip_val:
        raise ValueError(
            f"{type(task).__name__} optimizes by hand, where the trainer can't clip gradients: add "
            "trainer.gradient_clip_val=null, and clip by self.clip_gradients"
        )
    if isinstance(task, ClassificationTask):
        _check_monitors(config, task, data)
        optimizer = task.optimizer(parameter_groups(task.net))
        if task.scheduler is not None and not takes_total_steps(task.scheduler):
            task.scheduler(optimizer)
        if is_ours(config):
            _check_sizes(config, facts or DataFacts(data))
        else:
            facts = facts or DataFacts(data)
            _check_loaders(config, facts)
            _check_batch(task, facts)
            _check_length(config, task, facts)
    _check_limits(config, task, data, facts or DataFacts(data))
    if is_ours(config):
        _check_interval(config, len(data.train_dataloader()))


def check_fits(config: DictConfig, task: LightningModule, checkpoint: Checkpoint | None) -> None:
    """Compare a task with the checkpoint to resume from, before the run's folder is changed.

    Raises:
        ValueError: a weight or buffer has a different shape; or, in a task of this package, one isn't in both.
    """
    if checkpoint is None:
        return
    mine = {name: tuple(value.shape) for name, value in task.state_dict().items() if isinstance(value, Tensor)}
    theirs = checkpoint.shapes
    wrong = [name for name, shape in mine.items() if theirs.get(name, shape) != shape]
    if tasks.is_ours(config):
        wrong += sorted(mine.keys() ^ theirs.keys())
    if wrong:
        before, now = (shapes.get(wrong[0], "absent") for shapes in (theirs, mine))
        raise ValueError(
            f"resume: {str(checkpoint.path)!r} is of another network: {wrong[0]} is {before} there and {now} here; "
            "give the options it was started with, or start another run (run_id=<name>)"
        )


def is_ours(config: DictConfig) -> bool:
    """Whether the DataModule is one of this package."""
    return str(config.data._target_).startswith("syncbn.")


def has_test(task: LightningModule, data: LightningDataModule) -> bool:
    """Whether there is test data and a test step."""
    return is_overridden("test_step", task) and is_overridden("test_dataloader", data)


def _check_monitors(config: DictConfig, task: ClassificationTask, data: LightningDataModule) -> None:
    nodes = config.get("callbacks") or {}
    monitors = {name: node.get("monitor") for name, node in nodes.items() if node.get("monitor") is not None}
    for name, monitor in monitors.items():
        if monitor not in task.monitored_names:
            raise ValueError(
                f"callbacks.{name}.monitor={monitor}: no such metric; {suggest(monitor, task.monitored_names)}"
            )
    absent = {name: monitor for name, monitor in monitors.items() if monitor.startswith("val/")}
    if not absent:
        return
    reason = None
    if config.trainer.limit_val_batches == 0:
        reason = "trainer.limit_val_batches=0 leaves validation out"
    elif not is_overridden("val_dataloader", data):
        reason = f"{type(data).__name__} has no val_dataloader"
    if reason is not None:
        name, monitor = next(iter(absent.items()))
        instead = " ".join(f"callbacks.{name}.monitor=train/loss" for name in absent)
        raise ValueError(f"callbacks.{name} monitors {monitor}, but {reason}: add {instead}, or callbacks=none")


def _check_limits(config: DictConfig, task: LightningModule, data: LightningDataModule, facts: DataFacts) -> None:
    """Compare limits with the numbers of batches; for foreign data only if a limit cuts the training."""
    parts = []
    for part in ("train", "val", "test"):
        cuts = part == "train" and (config.trainer.get("overfit_batches") or config.trainer.accumulate_grad_batches > 1)
        cuts = cuts or config.trainer.get(f"limit_{part}_batches") is not None
        if (config.test if part == "test" else config.train) and (is_ours(config) or (cuts and part == "train")):
            parts.append(part)
    batches = {}
    for part in parts:
        if is_overridden(f"{part}_dataloader", data):
            loader = getattr(data, f"{part}_dataloader")() if is_ours(config) else facts.train_loader
            with suppress(TypeError):  # without a length
                batches[part] = len(loader)
    if found := list(batch_mistakes(config.trainer, batches, tests=config.test and has_test(task, data))):
        raise ValueError("\n       ".join(found))
    endless = config.trainer.get("max_epochs") in (None, -1) and config.trainer.get("max_steps", -1) == -1
    if config.train and endless and getattr(task, "scheduler", None) is not None and tasks.is_ours(config):
        raise ValueError(
            "scheduler: a schedule needs to know its steps: set trainer.max_epochs or trainer.max_steps, or ~scheduler"
        )


def _check_sizes(config: DictConfig, facts: DataFacts) -> None:
    """Compare sizes that the model's config gives with the data's; more classes than the data has are no mistake."""
    for size in SIZES:
        given, there = (_listed(value) for value in (config.model.get(size), getattr(facts, size)))
        if given is None or there is None:
            continue
        fits = given >= there if size == "num_classes" else given in (there, there[:1])
        if not fits:
            known = " x ".join(map(str, there))
            raise ValueError(
                f"model.{size}={config.model[size]}, and the data has {known}: leave it out, or give {known}"
            )


def _listed(size: Any) -> list[int] | None:
    return size if size is None else [size] if isinstance(size, int) else list(size)


def _check_batch(task: ClassificationTask, facts: DataFacts) -> None:
    """Compare the first batch of a foreign DataModule with what the task requires."""
    name, batch = type(facts.data).__name__, facts.first_batch
    wanted = f"{type(task).__name__} takes batches (images, labels)"
    advice = "let the data make such pairs, or write a task of your own (task._target_)"
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise ValueError(f"{wanted}, and {name} gives {_described(batch)}: {advice}")
    _, labels = batch
    dims = 3 if isinstance(task, SegmentationTask) else 1
    if labels.dtype not in (torch.int64, torch.uint8) or labels.dim() != dims:
        shape = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        hint = ": give labels.long()" if labels.dim() == dims and not labels.is_floating_point() else ""
        raise ValueError(
            f"{wanted}, labels of {dims} dimension(s) and of whole numbers, and {name} gives {shape}{hint}"
        )
    if labels.numel() and int(labels.min()) < 0 and not isinstance(task, SegmentationTask):
        raise ValueError(
            f"{wanted}, labels of 0, 1, 2, ..., and {name} gives {int(labels.min())}: leave such samples out of "
            "the data, or write a task of your own (task._target_)"
        )
    classes, stated = len(task.class_names), facts.num_classes
    highest = int(labels.max()) + 1 if labels.numel() else 0
    if max(highest, stated or 0) > classes:
        raise ValueError(
            f"the network returns {classes} logits, and {name} has {max(highest, stated or 0)} classes: give the "
            "network as many, +model.num_classes=<number> say"
        )


def _check_loaders(config: DictConfig, facts: DataFacts) -> None:
    """Check that a foreign DataModule, set up by now, trains and validates by one loader."""
    data, trains = facts.data, facts.train_loader
    if isinstance(trains, list | tuple | dict) and trains:
        raise ValueError(
            f"{type(data).__name__}.train_dataloader() returns {len(trains)} loader(s) together, and the task takes "
            "one: join data sets by torch.utils.data.ConcatDataset, or write a task of your own (task._target_)"
        )
    if not config.train or config.trainer.get("limit_val_batches") == 0 or not is_overridden("val_dataloader", data):
        return
    with isolate_rng():
        loaders = data.val_dataloader()
    if loaders is None or (isinstance(loaders, list | tuple | dict) and len(loaders) != 1):
        found = f"{len(loaders)} loaders" if loaders else "no loader"
        raise ValueError(
            f"{type(data).__name__}.val_dataloader() returns {found}, and the task takes one: join data sets by "
            "torch.utils.data.ConcatDataset; without validation, add callbacks=none trainer.limit_val_batches=0"
        )


def _check_length(config: DictConfig, task: ClassificationTask, facts: DataFacts) -> None:
    """Check that a schedule over all steps can know them, whose loader may not say how many batches it has."""
    if not (config.train and task.scheduler is not None and takes_total_steps(task.scheduler)):
        return
    if config.trainer.get("max_steps", -1) == -1 and not isinstance(config.trainer.get("limit_train_batches"), int):
        try:
            len(facts.train_loader)
        except TypeError:  # of an IterableDataset
            raise ValueError(
                f"scheduler: a schedule needs to know its steps, and {type(facts.data).__name__}.train_dataloader() "
                "has no length: set trainer.max_steps or trainer.limit_train_batches, or ~scheduler"
            ) from None


def _described(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
    return f"a {type(batch).__name__}"


def _check_interval(config: DictConfig, batches: int) -> None:
    limit = config.trainer.limit_train_batches
    if isinstance(limit, int):
        batches = min(batches, limit)
    interval = config.trainer.val_check_interval
    if isinstance(interval, int) and interval > batches and config.trainer.check_val_every_n_epoch is not None:
        raise ValueError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: make it smaller, "
            "or count over epochs by adding trainer.check_val_every_n_epoch=null"
        )
