"""The network of a finished run, with the data and the task around it and the weights of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule
from omegaconf import DictConfig
from torch import nn

from syncbn.run import build, tasks
from syncbn.run.facts import DataFacts
from syncbn.run.folder import load_weights
from syncbn.training.checkpoint import load_checkpoint


@dataclass(frozen=True)
class Trained:
    """What a run has come to.

    Attributes:
        data: its DataModule.
        net: the network, in eval mode on the CPU.
        task: the LightningModule around it, where it had to be built to find the network in the checkpoint.
    """

    data: LightningDataModule
    net: nn.Module
    task: LightningModule | None = None


def open_trained(config: DictConfig, checkpoint: Path) -> Trained:
    """Build the network of a config, and give it the weights of a checkpoint.

    Where a task of somebody's own keeps the network is found by loading the task. One that trains no network of the
    config, or that keeps it wrapped, is the network itself.

    Raises:
        ValueError: the checkpoint is damaged, or another network's.
    """
    data = build.build_data(config)
    facts, net = DataFacts(data), None
    if tasks.asks_for_network(config):
        net = build.build_network(config, data, fetch_weights=False, facts=facts)
    if net is not None and tasks.is_ours(config):
        load_weights(net, checkpoint)
        return Trained(data, net.eval())
    task = build.build_task(config, net, data, facts=facts).eval()
    state = load_checkpoint(checkpoint)
    task.on_load_checkpoint(state)
    try:
        task.load_state_dict(state.get("state_dict", {}), strict=task.strict_loading)
    except RuntimeError as error:
        raise ValueError(f"{str(checkpoint)!r} doesn't fit the task of the run's config: {error}") from error
    kept = any(module is net for module in task.modules())
    return Trained(data, net if kept and net is not None else task, task)
