"""The network of a finished run with a checkpoint's weights, its data and its task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from omegaconf import DictConfig
from torch import nn

from syncbn.run import build, tasks
from syncbn.run.facts import DataFacts
from syncbn.training.checkpoint import load_checkpoint

_NET = "net."  # prefix of the network in a task


@dataclass(frozen=True)
class Trained:
    """Result of a run.

    Attributes:
        data: DataModule of the run.
        net: network, in eval mode on the CPU.
        task: LightningModule around it, if it was needed to find the network in the checkpoint.
    """

    data: LightningDataModule
    net: nn.Module
    task: LightningModule | None = None


def open_trained(config: DictConfig, checkpoint: Path) -> Trained:
    """Build the network of a config and load the weights of a checkpoint.

    A user's task is loaded to find where it keeps the network. A task that doesn't train the config's network, or that
    wraps it, is treated as the network.

    Raises:
        ValueError: the checkpoint is damaged, or of another network.
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


def load_weights(net: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a task's checkpoint into its network.

    Raises:
        ValueError: the checkpoint is damaged, or of another network.
    """
    state: dict[str, Any] = load_checkpoint(checkpoint).get("state_dict", {})
    weights = {key.removeprefix(_NET): value for key, value in state.items() if key.startswith(_NET)}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{str(checkpoint)!r} doesn't fit the network of the run's config: {error}") from error
