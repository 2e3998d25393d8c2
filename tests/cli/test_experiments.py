"""Every experiment of conf/ trains for two steps on two ranks, and its ranks agree."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from syncbn.cli.overrides import config_groups
from syncbn.config import conf_dir
from tests.ranks import Ranks
from tests.training import fits

EXPERIMENTS = config_groups([conf_dir()])["experiment"]
SHORT = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks=none",
    "logger=csv",
)


def two_steps(experiment: str, folder: Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics and the network after two steps of `scripts/train.py experiment=<name>`, without a test."""
    from syncbn.cli import build
    from syncbn.launch.world import World

    world = World("torchrun", rank=0, local_rank=0, world_size=2, local_world_size=2, num_nodes=1)
    with fits.launched(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = [f"experiment={experiment}", "trainer=ddp", *SHORT, f"output_root={folder}", "run_id=r"]
        config = compose("train", overrides)
        torch.manual_seed(config.seed)
        data = build.build_data(config)
        net = build.build_network(config, data)
        task = build.build_task(config, net, data)
        trainer = build.build_trainer(config, build.build_callbacks(config, [], task), [], world)
        trainer.fit(task, data)
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        return {name: float(value) for name, value in metrics.items()}, fits.state(net)


@pytest.mark.distributed
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_trains_for_two_steps_on_two_ranks(ranks: Callable[[int], Ranks], experiment: str, tmp_path: Path) -> None:
    (metrics, net), (_, other) = ranks(2).run(two_steps, experiment, tmp_path)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    for key, value in net.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}")
