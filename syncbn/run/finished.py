"""Finished runs, opened in one process for the commands that use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbn.run.check import unknown_choice

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from omegaconf import DictConfig
    from torch import nn

_ONE_PROCESS = ("trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto")


@dataclass
class FinishedRun:
    """An opened run: its config, data and trained network, in eval mode on the CPU."""

    folder: Path
    checkpoint: Path
    config: "DictConfig"
    data: "LightningDataModule"
    net: "nn.Module"


def open_run(
    folder: Path, checkpoint: Path | None = None, data: str | None = None, overrides: Sequence[str] = ()
) -> FinishedRun:
    """Open a run's folder.

    Args:
        folder: folder of the run.
        checkpoint: checkpoint to load instead of the best.
        data: a choice of `conf/data`, instead of the run's own.
        overrides: overrides of the run's config.

    Raises:
        ValueError: the folder isn't a run's, its config is invalid, or its checkpoint is damaged.
    """
    from syncbn.run.folder import checkpoint_of, load_config, load_weights

    groups = {} if data is None else {"data": _choice("data", data)}
    config = load_config(folder, [*_ONE_PROCESS, *overrides], groups)
    checkpoint = checkpoint or checkpoint_of(folder)

    from syncbn.run import build, screen

    screen.quiet()
    module = build.build_data(config)
    net = build.build_network(config, module, fetch_weights=False)
    load_weights(net, checkpoint)
    return FinishedRun(folder, checkpoint, config, module, net.eval())


def _choice(group: str, choice: str) -> Any:
    """Config of `data=<choice>`, with interpolations left for the run's config."""
    from syncbn.run.compose import choice_of, config_groups

    choices = config_groups()[group]
    if choice not in choices:
        raise ValueError(unknown_choice(group, choice, choices))
    return choice_of(group, choice)
