"""Building the objects that a checked config describes."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from syncbn.launch.world import World, devices_and_nodes
from syncbn.models import load_weights
from syncbn.models.dcgan import DCGAN
from syncbn.models.fcn import FCN
from syncbn.norm import norm_layer
from syncbn.norm.core.groups import check_size
from syncbn.norm.core.options import defaults, suggest
from syncbn.norm.core.registry import known_options
from syncbn.run.elastic import batch_size_of_a_rank
from syncbn.run.resume import LAST, Checkpoint
from syncbn.run.targets import check_made, checked_object, kind_at, targets
from syncbn.training import (
    AtomicCheckpointIO,
    ClassificationTask,
    EpochLines,
    ExactResume,
    ExchangeRecord,
    GANTask,
    NanPolicy,
    Preemption,
    RanksAgree,
    SegmentationTask,
    SyncGroup,
    WandbMedia,
)
from syncbn.training.optim import parameter_groups


def build_data(config: DictConfig) -> LightningDataModule:
    """Build the data module of `config.data`."""
    return _build("data", config.data)


def build_network(config: DictConfig, data: Any, *, fetch_weights: bool = True) -> nn.Module:
    """Build the network of `config.model` with the norm of `config.norm`, for the data's images and classes.

    Without `fetch_weights`, pretrained networks of other packages are built without weights, which come from a
    checkpoint.
    """
    options = {key: value for key, value in config.norm.items() if key not in ("name", "sync_group")}
    usual = defaults(known_options()[config.norm.name])
    if options.get("keras_momentum") is not None and options.get("momentum") == usual["momentum"]:
        del options["momentum"]  # the default; an explicit one together with keras_momentum is refused
    model = DictConfig(OmegaConf.to_container(config.model, resolve=True))
    model.pop("weights", None)  # `load_pretrained` reads them
    if "pretrained" in model and not fetch_weights:
        model.pretrained = False
    sizes = {name: model.get(name) or getattr(data, name) for name in _sizes_taken(model)}
    return _build("model", model, norm=norm_layer(config.norm.name, **options), **sizes)


def _sizes_taken(model: DictConfig) -> list[str]:
    """The data's sizes that the model's function takes as arguments."""
    parameters = inspect.signature(checked_object("model", model._target_)).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    passed_on = ("num_classes", "in_channels") if takes_more else ()
    return [name for name in ("num_classes", "in_channels", "image_size") if name in parameters or name in passed_on]


def load_pretrained(config: DictConfig, net: nn.Module) -> str | None:
    """Load the weights file `config.model.weights`, if any, into `net`; returns a description."""
    path = config.model.get("weights")
    return None if path is None else load_weights(net, path)


def build_task(config: DictConfig, net: nn.Module, data: Any) -> LightningModule:
    """Build the Lightning module that trains `net` with the config's optimizer and schedule.

    Raises:
        ValueError: the network's output is for another task.
    """
    chosen = checked_object("task", config.task._target_)
    for kind, task, name in ((DCGAN, GANTask, "gan"), (FCN, SegmentationTask, "segmentation")):
        if isinstance(net, kind) and chosen in {ClassificationTask, SegmentationTask, GANTask} - {task}:
            raise ValueError(f"{chosen.__name__} can't train a network of the class {kind.__name__}: add task={name}")
    objects = {
        "net": net,
        "optimizer": _build("optimizer", config.optimizer),
        "scheduler": _build("scheduler", config.scheduler) if config.get("scheduler") else None,
        "num_classes": data.num_classes,
        "class_names": data.class_names,
    }
    taken = inspect.signature(checked_object("task", config.task._target_)).parameters
    task = _build("task", config.task, **{name: value for name, value in objects.items() if name in taken})
    if task.example_input_array is None:
        task.example_input_array = torch.zeros(1, data.in_channels, *data.image_size)  # used by the model summary
    return task


def build_loggers(config: DictConfig) -> list[Logger]:
    """Build the loggers of `config.logger`, in order."""
    return [_build(f"logger.{name}", node) for name, node in (config.get("logger") or {}).items()]


def build_callbacks(config: DictConfig, loggers: list[Logger], task: LightningModule) -> list[Callback]:
    """Build the callbacks of `config.callbacks`; those for W&B are left out without a W&B logger.

    Raises:
        ValueError: a callback monitors a metric that the task doesn't log, or needs a validation that doesn't happen.
    """
    nodes = config.get("callbacks") or {}
    callbacks = [_build(f"callbacks.{name}", node) for name, node in nodes.items()]
    if isinstance(task, ClassificationTask):
        for name, node in nodes.items():
            _check_monitor(name, node.get("monitor"), task.monitored_names, config.trainer.limit_val_batches)
    has_wandb = any(isinstance(logger, WandbLogger) for logger in loggers)
    return [callback for callback in callbacks if has_wandb or not isinstance(callback, WandbMedia)]


def _check_monitor(name: str, monitor: str | None, allowed: list[str], limit_val_batches: float | None) -> None:
    if monitor is None:
        return
    if monitor not in allowed:
        raise ValueError(f"callbacks.{name}.monitor={monitor}: no such metric; {suggest(monitor, allowed)}")
    if monitor.startswith("val/") and limit_val_batches == 0:
        raise ValueError(
            f"callbacks.{name} monitors {monitor}, but trainer.limit_val_batches=0 leaves validation out: add "
            f"callbacks.{name}.monitor=train/loss, or callbacks=none"
        )


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
    return _build(
        "trainer",
        config.trainer,
        devices=devices,
        num_nodes=num_nodes,
        callbacks=[
            RanksAgree(_settings(config), config.get("check_ranks_every_n_steps")),
            *_sync_group(config),
            *callbacks,
            NanPolicy(config.get("nan_policy", "stop"), last),
            ExactResume(),
            ExchangeRecord(),
            Preemption(last),
        ],
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
    return [SLURMEnvironment(auto_requeue=False)] if world.launcher == "srun" else []


def _check_accelerator(accelerator: str) -> None:
    if accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator={accelerator}, but torch {torch.__version__} finds no GPU: take "
            "trainer.accelerator=cpu, or install a build of torch for the GPU"
        )


def fit_batches_to_ranks(
    config: DictConfig, data: LightningDataModule, trainer: Trainer, checkpoint: Checkpoint | None
) -> None:
    """Adapt the batch size of a run resumed on another number of ranks, according to `elastic`.

    Raises:
        ValueError: `elastic` is "refuse", or the ranks can't share the global batches.
    """
    stated: int | None = getattr(data, "batch_size", None)
    size = batch_size_of_a_rank(stated, trainer.world_size, checkpoint, config.elastic)
    if size != stated:
        data.batch_size = config.data.batch_size = size  # type: ignore[attr-defined]  # recorded in the run's folder, too


def check_start(config: DictConfig, task: LightningModule, data: LightningDataModule, trainer: Trainer) -> None:
    """Create optimizer and training loader once before the fit, to report errors as the user's mistakes.

    Raises:
        ValueError: the ranks' batches don't fit the data, the ranks can't be divided into groups for the norms,
            validation would come after the end of an epoch, or the optimizer doesn't take its options.
    """
    check_size(config.norm.get("sync_group", "world"), trainer.world_size)
    if isinstance(task, ClassificationTask):
        task.optimizer(parameter_groups(task.net))
    data.trainer = trainer
    batches = len(data.train_dataloader())
    limit = config.trainer.limit_train_batches
    if isinstance(limit, int):
        batches = min(batches, limit)
    interval = config.trainer.val_check_interval
    if isinstance(interval, int) and interval > batches and config.trainer.check_val_every_n_epoch is not None:
        raise ValueError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: make it smaller, "
            "or count over epochs by adding trainer.check_val_every_n_epoch=null"
        )


def _build(where: str, node: DictConfig, **objects: Any) -> Any:
    """Call a node's `_target_` with the node's keys and `objects`; returns a partial where one is expected."""
    plain = OmegaConf.to_container(node, resolve=True)
    for place, part in targets(plain, where):
        checked_object(place, part["_target_"])
    # Objects aren't given to `instantiate`: it would turn dataclasses among them into configs.
    make = hydra.utils.instantiate(DictConfig(plain), _convert_="all", _partial_=True)
    if kind_at(where).built_later:
        return make
    check_made(where, made := make(**objects))
    return made
