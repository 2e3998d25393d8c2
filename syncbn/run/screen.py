"""Screen output of a run, and suppression of other packages' messages."""

import logging
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig
    from torch import nn

    from syncbn.run.changes import Change
    from syncbn.run.resume import Checkpoint
    from syncbn.training import Preemption

# Each is about a deliberate choice; the text is the beginning of Lightning's or torch's message.
_KNOWN = (
    "When using the `ThroughputMonitor`, you need to define a `flops_per_batch`",  # samples per second are enough
    ".*does not have many workers which may be a bottleneck",  # images in memory need no workers
    "Using `DistributedSampler` with the dataloaders",  # our sampler doesn't pad
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # between Lightning and torch
    "The `srun` command is available on your system but is not used",  # on a cluster's login node
    "You're resuming from a checkpoint that ended before the epoch ended",  # ShareLoaders says what follows
    "Checkpoint directory .* exists and is not empty",  # a resumed run
)
# Lightning's remarks on devices, ranks, checkpoints and its products. Warnings and requested output of callbacks or
# profilers use other loggers.
_REMARKS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)


def quiet() -> None:
    """Suppress warnings and remarks that don't concern this run."""
    for start in _KNOWN:
        warnings.filterwarnings("ignore", message=start)
    for name in _REMARKS:
        logging.getLogger(name).setLevel(logging.WARNING)


def print_start(
    config: "DictConfig",
    net: "nn.Module",
    trainer: "Trainer",
    folder: Path,
    checkpoint: "Checkpoint | None",
    weights: str | None,
    changes: "Sequence[Change]" = (),
) -> None:
    """What is about to be trained, on how many processes, and where it will be found."""
    from syncbn.run.network import described_norm, name_of

    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"network:       {name_of(config, net)}, {parameters:,} parameters, {described_norm(config, net)}")
    if weights is not None:
        print(f"weights:       {weights}")
    print(f"processes:     {trainer.world_size} on {trainer.strategy.root_device.type}, {trainer.precision}")
    print(f"run folder:    {_shown(folder)}")
    if checkpoint is not None:
        print(f"resumed:       after step {checkpoint.step}")
        resized = checkpoint.world_size not in (None, trainer.world_size)
        if resized:
            print(
                f"batch size:    {(checkpoint.global_batch_size or 0) // trainer.world_size} on each of "
                f"{trainer.world_size} rank(s), to keep the global batches of {checkpoint.global_batch_size} that "
                f"{checkpoint.world_size} rank(s) began with"
            )
        if other := [str(change) for change in changes if change.key != "data.batch_size"]:
            print(f"changed:       {', '.join(other)}")
        if len(other) < len(changes) and not resized:
            print(f"batch size:    stays {config.data.batch_size}: a run's place in an epoch is one among such batches")
        if checkpoint.instead_of:
            print(f"               from {checkpoint.path.name}: {checkpoint.instead_of}")
    print(flush=True)


def print_results(metrics: Mapping[str, Any], folder: Path, training: str | None = None) -> None:
    """How the training went, the metrics of the test, the run folder and its plots."""
    print()
    if training:
        print(f"training:      {training}")
    tested = {name.removeprefix("test/"): float(value) for name, value in metrics.items()}
    if {"test/acc", "test/loss"} <= metrics.keys():
        print(f"test accuracy: {100 * tested.pop('acc'):.2f} %   test loss: {tested.pop('loss'):.4f}")
    if tested:
        print(f"test:          {described_metrics(tested)}")
    print(f"run folder:    {_shown(folder)}")
    plots = sorted((folder / "plots").glob("*.png"))
    if plots:
        print(f"plots:         {_shown(folder)}/plots/{{{','.join(plot.name for plot in plots)}}}")
    wandb = Path(os.environ.get("WANDB_DIR") or folder, "wandb")
    run_id = os.environ.get("WANDB_RUN_ID") or folder.name
    if offline := sorted(wandb.glob(f"offline-run-*-{run_id}" if "WANDB_DIR" in os.environ else "offline-run-*")):
        print(f"W&B, offline:  wandb sync {' '.join(shlex.quote(_shown(run)) for run in offline)}")


def described_metrics(metrics: Mapping[str, float]) -> str:
    """Names and values of metrics in a line."""
    return "   ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def describe_training(trainer: "Trainer", seconds: float, first_step: int) -> str:
    """Describe epochs, steps since `first_step`, their time, and the reason of an early end."""
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        return f"{seconds:.1f} s, the start of the ranks included"  # this process doesn't know their steps
    steps, max_epochs = trainer.global_step - first_step, trainer.max_epochs
    reason = _ended_by(trainer)
    if not steps and first_step:
        return f"none: the run is after step {first_step} and {trainer.current_epoch} epoch(s); {reason}"
    whole = trainer.current_epoch - any(callback.cuts_epoch for callback in _preemptions(trainer))
    epochs = str(whole)
    if max_epochs is not None and whole < max_epochs and max_epochs > 0:
        epochs += f" of {max_epochs}"
    resumed = f" after step {first_step}" if first_step else ""
    text = f"{epochs} epoch(s), {steps} steps{resumed} in {seconds:.1f} s"
    return f"{text} ({reason})" if reason and not reason.startswith("trainer.max_epochs") else text


def _ended_by(trainer: "Trainer") -> str | None:
    """What has ended a training, by its key."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps={trainer.max_steps} ended it"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"trainer.max_epochs={trainer.max_epochs} ended it"
    if any(callback.time_is_over for callback in _preemptions(trainer)):
        return "trainer.max_time ended it"
    if not trainer.should_stop:
        return None
    for callback in trainer.early_stopping_callbacks:
        if callback.stopping_reason_message or callback.wait_count >= callback.patience:
            return f"stopped early: {callback.stopping_reason_message or f'{callback.monitor} no longer improved'}"
    return "stopped early: a callback or the task set trainer.should_stop"


def _preemptions(trainer: "Trainer") -> "list[Preemption]":
    from syncbn.training import Preemption
    from syncbn.training.callbacks.found import callbacks_of

    return callbacks_of(trainer, Preemption)


def _shown(folder: Path) -> str:
    """Path relative to the current folder, if it is below it; with hydra.job.chdir it is that itself."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder)
