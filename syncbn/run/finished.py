"""Finished runs, opened in one process for the commands that use them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbn.run.check import unknown_choice

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule
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
    task: "LightningModule | None" = None

    def built_task(self) -> "LightningModule":
        """The LightningModule around the network.

        Raises:
            ValueError: the data has more classes than the network.
        """
        from syncbn.run import build
        from syncbn.run.facts import DataFacts
        from syncbn.training import ClassificationTask

        if self.task is None:
            self.task = build.build_task(self.config, self.net, self.data)
        if isinstance(self.task, ClassificationTask):
            classes, stated = len(self.task.class_names), DataFacts(self.data).stated("num_classes")
            if stated is not None and stated > classes:
                raise ValueError(
                    f"{type(self.data).__name__} has {stated} classes, and the network was trained for {classes}: take "
                    "data of the same classes"
                )
        return self.task

    def images(self) -> Any:
        """Images of the test, or the first training batch of a user's own DataModule."""
        from syncbn.run import start
        from syncbn.run.facts import DataFacts

        if start.is_ours(self.config):
            return next(iter(self.data.test_dataloader()))[0]
        return DataFacts(self.data).first_batch[0]

    def train_loader(self) -> Any:
        """The training batches, of a DataModule that may have to be set up first."""
        from syncbn.run.facts import DataFacts

        return DataFacts(self.data).train_loader


def open_run(
    folder: Path,
    checkpoint: Path | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    where_known: Mapping[str, Any] | None = None,
    *,
    calls: bool = True,
) -> FinishedRun:
    """Open a run's folder.

    Args:
        folder: the run's.
        checkpoint: another one than the best.
        data: a choice of `conf/data`, in the place of the run's own.
        overrides: of the run's config.
        where_known: values of keys that its data may have or not.
        calls: whether the network will be called, outside of its task's steps.

    Raises:
        ValueError: the folder isn't a run's, its config is invalid, its checkpoint is damaged, or the network can't be
            called.
    """
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from omegaconf import OmegaConf

    from syncbn.run.folder import checkpoint_of, load_config

    groups = {} if data is None else {"data": _choice("data", data)}
    config = load_config(folder, [*_ONE_PROCESS, *overrides], groups)
    for setting in _ONE_PROCESS:
        key, _, one = setting.partition("=")
        if str(OmegaConf.select(config, key)) != one:
            raise ValueError(
                f"{key}={OmegaConf.select(config, key)}: a finished run is opened in one process; leave it out"
            )
    for key, value in (where_known or {}).items():
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, value)
    checkpoint = checkpoint or checkpoint_of(folder)

    from syncbn.run import screen
    from syncbn.run.trained import open_trained

    screen.quiet()
    trained = open_trained(config, checkpoint)
    if calls and isinstance(trained.net, LightningModule) and not is_overridden("forward", trained.net):
        raise ValueError(
            f"{type(trained.net).__name__} has no forward, by which its network would be called: add forward(self, "
            "images) to it, or let it take the network, as model"
        )
    return FinishedRun(folder, checkpoint, config, trained.data, trained.net, trained.task)


def _choice(group: str, choice: str) -> Any:
    """Config of `data=<choice>`, with interpolations left for the run's config."""
    from syncbn.run.compose import choice_of, choices_of, config_groups

    choices = choices_of(group, config_groups())
    if choice not in choices:
        raise ValueError(unknown_choice(group, choice, choices))
    return choice_of(group, choice)
