"""Training by the same configs and functions as `syncbn train`."""

import copy
import functools
import json
from collections.abc import Callable, Sequence

from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn

from science.runs import Setting
from syncbn.launch.world import World
from syncbn.run import fit as story
from syncbn.run.fit import Run


def train(setting: Setting) -> dict[str, float]:
    """Fit and test; returns every metric that the task logs."""
    run = fit(setting.config, setting.world)
    return story.logged(run) | story.test(run)


def fit(
    config: DictConfig,
    world: World,
    callbacks: Sequence[Callback] = (),
    change: Callable[[nn.Module], nn.Module] | None = None,
) -> Run:
    """Build and fit what a config describes.

    Args:
        config: config of `syncbn train`.
        world: rank of this process and number of ranks.
        callbacks: callbacks in addition to the config's.
        change: maps the config's network to the one to train.
    """
    run = story.prepare(config, world, callbacks=callbacks, change=change)
    story.fit(run)
    return run


def trained(setting: Setting) -> nn.Module:
    """Copy of the setting's trained network, in eval mode. The last is cached for cells that differ in later steps."""
    config = json.dumps(OmegaConf.to_container(setting.config), sort_keys=True)
    return copy.deepcopy(_trained(config, setting.world))


@functools.lru_cache(maxsize=1)
def _trained(config: str, world: World) -> nn.Module:
    return fit(OmegaConf.create(json.loads(config)), world).net.eval()
