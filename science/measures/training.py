"""Training as `syncbn train` does it, from the same configs and through the same functions."""

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
    """Fit and test; every metric that the task logs."""
    return story.test(fit(setting.config, setting.world))


def fit(
    config: DictConfig,
    world: World,
    callbacks: Sequence[Callback] = (),
    change: Callable[[nn.Module], nn.Module] | None = None,
) -> Run:
    """Everything that a config describes, after the fit.

    Args:
        config: of `syncbn train`.
        world: this process among the ranks.
        callbacks: beside the config's.
        change: from the config's network to the one to train.
    """
    run = story.prepare(config, world, callbacks=callbacks, change=change)
    story.fit(run)
    return run


def trained(setting: Setting) -> nn.Module:
    """The setting's network in eval mode, a copy. The last one is kept, for cells that differ in what comes after."""
    config = json.dumps(OmegaConf.to_container(setting.config), sort_keys=True)
    return copy.deepcopy(_trained(config, setting.world))


@functools.lru_cache(maxsize=1)
def _trained(config: str, world: World) -> nn.Module:
    return fit(OmegaConf.create(json.loads(config)), world).net.eval()
