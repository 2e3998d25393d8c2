"""From a checked config to the LightningModule that trains: one of ours around a network, or any other."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig
from torch import nn

from syncbn.models.dcgan import DCGAN
from syncbn.models.fcn import FCN
from syncbn.run import network
from syncbn.run.construct import asks_for, construct, parameters_of
from syncbn.run.facts import DataFacts
from syncbn.run.targets import checked_object
from syncbn.training import ClassificationTask, GANTask, SegmentationTask

_NETWORK = ("net", "model")  # by these names a task asks for the network
_OBJECTS = (*_NETWORK, "optimizer", "scheduler", "norm")  # what is given under these names is no plain value


def is_ours(config: DictConfig) -> bool:
    """Whether the task is one of this package."""
    return str(config.task._target_).startswith("syncbn.")


def asks_for_network(config: DictConfig) -> bool:
    """Whether the task trains the network of `config.model`, and isn't one as a whole."""
    return any(asks_for(name, "task", config.task) for name in _NETWORK)


def build_task(
    config: DictConfig, net: nn.Module | None, data: LightningDataModule, *, facts: DataFacts | None = None
) -> LightningModule:
    """The LightningModule of `config.task`.

    Ours train `net` with the config's optimizer and schedule. Any other is given what it asks for by name: the network
    as `net` or `model`, `optimizer` and `scheduler` as functions, `num_classes`, `in_channels`, `image_size` and
    `class_names` of the data, and `norm`. One that asks for no network is one itself: its batch norms are converted,
    unless it takes `norm`.

    Raises:
        ValueError: what the network makes is for another task, or isn't what the task needs.
    """
    chosen = checked_object("task", config.task._target_)
    for kind, task, name in ((DCGAN, GANTask, "gan"), (FCN, SegmentationTask, "segmentation")):
        if isinstance(net, kind) and chosen in {ClassificationTask, SegmentationTask, GANTask} - {task}:
            raise ValueError(f"{chosen.__name__} can't train a network of the class {kind.__name__}: add task={name}")
    facts = facts or DataFacts(data)
    makers: dict[str, Callable[[], Any]] = {
        **{name: lambda: net for name in _NETWORK},
        "optimizer": lambda: construct("optimizer", config.optimizer),
        "scheduler": lambda: construct("scheduler", config.scheduler) if config.get("scheduler") else None,
        "norm": lambda: network.norm_of(config),
        "num_classes": lambda: _num_classes(config, net, facts),
        "class_names": lambda: _class_names(_num_classes(config, net, facts), facts),
        "in_channels": lambda: facts.in_channels,
        "image_size": lambda: network.image_size_for(parameters["image_size"], facts.image_size),
    }
    parameters = parameters_of("task", config.task)
    asked = [
        name
        for name in parameters
        if (
            asks_for(name, "task", config.task)
            if name in _OBJECTS
            else config.task.get(name) is None and name in makers
        )
    ]
    given = {name: makers[name]() for name in asked}
    for name, value in tuple(given.items()):
        if value is None and parameters[name].default is not parameters[name].empty:
            del given[name]  # the task's own default
        elif value is None and name not in _OBJECTS:
            raise ValueError(
                f"{config.task._target_} asks for {name}, which neither {type(data).__name__} nor its first batch "
                f"says: add +task.{name}=<value>"
            )
    made: LightningModule = construct("task", config.task, **given)
    if not asks_for_network(config):
        if is_overridden("configure_model", made):
            made.configure_model()  # the layers are there before they are converted
        if "norm" not in asked:
            network.convert_norms(made, config, facts)
    if is_ours(config) and made.example_input_array is None and (example := _example(facts)) is not None:
        made.example_input_array = example  # the model summary counts by it
    return made


def _num_classes(config: DictConfig, net: nn.Module | None, facts: DataFacts) -> int | None:
    """As many as the network returns logits, which for one of ours and data of ours is what the data says."""
    if net is None or (network.is_ours(config) and str(config.data._target_).startswith("syncbn.")):
        return facts.num_classes
    if (width := network.output_width(net, facts)) is not None:
        return width
    if is_ours(config) and (facts.num_classes is None or facts.example is not None):
        raise ValueError(
            f"{type(net).__name__} returns no logits (N, classes) for the first of a pair (images, labels) of "
            f"{config.data._target_}: let it return such a tensor, or write a task of your own (task._target_)"
        )
    return facts.num_classes


def _class_names(num_classes: int | None, facts: DataFacts) -> list[str] | None:
    """One for each logit: the data's, and numbers for those that the data doesn't name."""
    names = facts.class_names
    if names is None or num_classes is None:
        return names
    return [*names, *(str(number) for number in range(len(names), num_classes))][:num_classes]


def _example(facts: DataFacts) -> torch.Tensor | None:
    channels, size = facts.stated("in_channels"), facts.stated("image_size")
    return None if channels is None or size is None else facts.example
