"""Screen output of a run, and suppression of other packages' messages."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig
    from torch import nn

    from syncbn.run.resume import Checkpoint

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
        if checkpoint.world_size not in (None, trainer.world_size):
            print(
                f"batch size:    {(checkpoint.global_batch_size or 0) // trainer.world_size} on each of "
                f"{trainer.world_size} rank(s), to keep the global batches of {checkpoint.global_batch_size} that "
                f"{checkpoint.world_size} rank(s) began with"
            )
        if checkpoint.instead_of:
            print(f"               from {checkpoint.path.name}: {checkpoint.instead_of}")
    print(flush=True)


def print_results(metrics: Mapping[str, Any], folder: Path, training: str | None = None) -> None:
    """How the training went, the metrics of the test, the run folder and its plots."""
    print()
    if training:
        print(f"training:      {training}")
    if "test/acc" in metrics:
        print(f"test accuracy: {100 * float(metrics['test/acc']):.2f} %   test loss: {float(metrics['test/loss']):.4f}")
    tested = {name.removeprefix("test/"): float(value) for name, value in metrics.items()}
    if others := [f"{name} {value:.4g}" for name, value in tested.items() if name not in ("acc", "loss")]:
        print(f"test:          {'   '.join(others)}")
    print(f"run folder:    {_shown(folder)}")
    plots = sorted((folder / "plots").glob("*.png"))
    if plots:
        print(f"plots:         {_shown(folder)}/plots/{{{','.join(plot.name for plot in plots)}}}")
    if offline := sorted((folder / "wandb").glob("offline-run-*")):
        print(f"W&B, offline:  wandb sync {' '.join(_shown(run) for run in offline)}")


def describe_training(trainer: "Trainer", seconds: float, first_step: int) -> str:
    """Describe epochs, steps since `first_step`, their time, and the reason of an early end."""
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        return f"{seconds:.1f} s, the start of the ranks included"  # this process doesn't know the ranks' steps
    epochs = str(trainer.current_epoch)
    if trainer.max_epochs is not None and trainer.current_epoch < trainer.max_epochs:
        epochs += f" of {trainer.max_epochs}"
    resumed = f" after step {first_step}" if first_step else ""
    text = f"{epochs} epoch(s), {trainer.global_step - first_step} steps{resumed} in {seconds:.1f} s"
    callback = trainer.early_stopping_callback
    reason = callback.stopping_reason_message if callback is not None and trainer.should_stop else None
    return f"{text} (stopped early: {reason})" if reason else text


def _shown(folder: Path) -> str:
    """Path relative to the current folder, if it is below it."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
