"""Training as `scripts/train.py` does it, from the same configs and through the same functions."""

import copy
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from science.runs import Setting
from syncbn.launch.relaunch import threads_of_a_rank
from syncbn.launch.world import World
from syncbn.run import build


class Fitted(NamedTuple):
    """A network after its training, with what trained it."""

    net: nn.Module
    data: Any
    task: LightningModule
    trainer: Trainer

    def test(self) -> dict[str, float]:
        """The metrics of the fit and of the test set."""
        metrics: dict[str, Any] = dict(self.trainer.callback_metrics)
        metrics |= self.trainer.test(self.task, self.data, verbose=False)[0]
        return {name: float(value) for name, value in metrics.items()}


def train(setting: Setting) -> dict[str, float]:
    """Fit and test; every metric that the task logs."""
    return fit(setting.config, setting.world).test()


def fit(
    config: DictConfig,
    world: World,
    callbacks: Sequence[Callback] = (),
    change: Callable[[nn.Module], nn.Module] | None = None,
) -> Fitted:
    """Everything that a config describes, after the fit.

    Args:
        config: of `scripts/train.py`.
        world: this process among the ranks.
        callbacks: beside the config's.
        change: from the config's network to the one to train.
    """
    torch.set_num_threads(threads_of_a_rank(config.threads, world))
    seed_everything(config.seed, workers=True, verbose=False)
    data: Any = build.build_data(config)
    net = build.build_network(config, data)
    net = net if change is None else change(net)
    task = build.build_task(config, net, data)
    every = [*build.build_callbacks(config, [], task), *callbacks]
    trainer = build.build_trainer(config, every, [], world)
    build.check_start(config, task, data, trainer)
    trainer.fit(task, data)
    return Fitted(net, data, task, trainer)


def trained(setting: Setting) -> nn.Module:
    """The setting's network in eval mode, a copy. The last one is kept, for cells that differ in what comes after."""
    config = json.dumps(OmegaConf.to_container(setting.config), sort_keys=True)
    return copy.deepcopy(_trained(config, setting.world))


@functools.lru_cache(maxsize=1)
def _trained(config: str, world: World) -> nn.Module:
    return fit(OmegaConf.create(json.loads(config)), world).net.eval()
