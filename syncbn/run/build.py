"""Building the objects that a checked config describes."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from syncbn.launch.world import World, devices_and_nodes
from syncbn.run.changes import Change, options_of
from syncbn.run.construct import asks_for, construct
from syncbn.run.limits import seconds
from syncbn.run.network import build_network as build_network
from syncbn.run.network import load_pretrained as load_pretrained
from syncbn.run.resume import LAST
from syncbn.run.start import check_start as check_start
from syncbn.run.start import fit_batches_to_ranks as fit_batches_to_ranks
from syncbn.run.tasks import build_task as build_task
from syncbn.run.tasks import is_ours
from syncbn.training import (
    AtomicCheckpointIO,
    ChangedOptions,
    EpochLines,
    ExactResume,
    ExchangeRecord,
    Monitors,
    NanPolicy,
    Preemption,
    RanksAgree,
    ShareLoaders,
    SyncGroup,
    WandbMedia,
)


def build_data(config: DictConfig) -> LightningDataModule:
    """Build the data module of `config.data`."""
    return construct("data", config.data)


def build_loggers(config: DictConfig) -> list[Logger]:
    """Build the loggers of `config.logger`, in order."""
    return [construct(f"logger.{name}", node) for name, node in (config.get("logger") or {}).items()]


def named_callbacks(config: DictConfig, loggers: list[Logger]) -> dict[str, Callback]:
    """Build the callbacks of `config.callbacks`; those for W&B are left out without a W&B logger."""
    named = {name: construct(f"callbacks.{name}", node) for name, node in (config.get("callbacks") or {}).items()}
    has_wandb = any(isinstance(logger, WandbLogger) for logger in loggers)
    return {name: callback for name, callback in named.items() if has_wandb or not isinstance(callback, WandbMedia)}


def build_callbacks(
    config: DictConfig, loggers: list[Logger], named: dict[str, Callback] | None = None
) -> list[Callback]:
    """Build the callbacks of a trainer, including `named_callbacks`, which may exist already.

    `check_start` checks what they monitor for this package's tasks, and a callback does for any other.
    """
    named = named_callbacks(config, loggers) if named is None else named
    return list(named.values()) if is_ours(config) else [Monitors(named), *named.values()]


def changed_options(config: DictConfig, changes: Sequence[Change], named: dict[str, Callback]) -> list[Callback]:
    """Callbacks that apply changed options to a resumed run; empty if there are none."""
    if not changes:
        return []
    takes_optimizer = is_ours(config) or asks_for("optimizer", "task", config.task)
    optimizer = options_of(changes, "optimizer") if takes_optimizer else {}
    callbacks = [
        (callback, {key: change.now for key, change in options_of(changes, f"callbacks.{name}").items()})
        for name, callback in named.items()
    ]
    return [
        ChangedOptions(
            {key: (change.before, change.now) for key, change in optimizer.items()},
            {key: change.now for key, change in options_of(changes, "scheduler").items()} if takes_optimizer else {},
            callbacks,
        )
    ]


def build_trainer(config: DictConfig, callbacks: list[Callback], loggers: list[Logger], world: World) -> Trainer:
    """Build the trainer for the launcher's processes.

    Our samplers divide the data over the ranks, without padding, which would count samples twice.

    Raises:
        ValueError: the trainer's processes differ from the launcher's.
    """
    _check_accelerator(config.trainer.accelerator)
    devices, num_nodes = devices_and_nodes(config.trainer.devices, config.trainer.num_nodes, world)
    if config.trainer.enable_progress_bar and not sys.stdout.isatty():
        callbacks = [*callbacks, EpochLines()]
    last = Path(config.paths.output_dir, LAST)
    return construct(
        "trainer",
        config.trainer,
        devices=devices,
        num_nodes=num_nodes,
        callbacks=[
            RanksAgree(_settings(config), config.get("check_ranks_every_n_steps")),
            *_sync_group(config),
            ShareLoaders(config.trainer.get("use_distributed_sampler", True)),
            *callbacks,
            NanPolicy(config.get("nan_policy", "stop"), last),
            ExactResume(),
            ExchangeRecord(),
            Preemption(last, seconds(config.trainer.get("max_time"))),
        ],
        max_time=None,  # Lightning's counts the time of all starts
        max_epochs=-1 if config.trainer.get("max_epochs") is None else config.trainer.max_epochs,
        num_sanity_val_steps=config.trainer.get("num_sanity_val_steps", 0) or (0 if is_ours(config) else 1),
        logger=loggers or False,
        plugins=[AtomicCheckpointIO(previous_of=[LAST.name]), *_environment(world)],
        default_root_dir=config.paths.output_dir,
        use_distributed_sampler=False,
    )


def _settings(config: DictConfig) -> dict[str, Any]:
    """Settings that must be equal on all ranks: all but file paths, which may differ between nodes."""
    text = json.dumps(OmegaConf.to_container(config, resolve=True))
    for place in (config.paths.output_dir, config.output_root):
        text = text.replace(json.dumps(place)[1:-1], "")
    return json.loads(text)


def _sync_group(config: DictConfig) -> list[SyncGroup]:
    """Add the group callback before all others: one that copies the network should copy its groups too."""
    size = config.norm.get("sync_group", "world")
    return [] if size == "world" else [SyncGroup(size)]


def _environment(world: World) -> list[SLURMEnvironment]:
    """SLURM's environment under srun; Lightning doesn't detect it if the job is named like a shell, as in salloc."""
    if world.launcher != "srun":
        return []
    # Lightning compares these with the trainer's, and a step may have them from its job, or not at all (srun -n 2).
    # The step's own are compared by `devices_and_nodes`.
    os.environ["SLURM_NTASKS_PER_NODE"] = str(world.local_world_size)
    os.environ["SLURM_NNODES"] = str(world.num_nodes)
    return [SLURMEnvironment(auto_requeue=False)]


def _check_accelerator(accelerator: str) -> None:
    if accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator={accelerator}, but torch {torch.__version__} finds no GPU: take "
            "trainer.accelerator=cpu, or install a build of torch for the GPU"
        )
