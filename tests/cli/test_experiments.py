"""Every experiment of conf/ trains for two steps on two ranks, and its ranks agree."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from syncbn.run.check import conf_dir
from syncbn.run.compose import config_groups
from tests.data.fashion_mnist import needs_fashion_mnist
from tests.data.image_files import write_images
from tests.ranks import Ranks
from tests.training import fits

EXPERIMENTS = config_groups()["experiment"]
SHORT = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks=none",
    "logger=csv",
)


IMAGES = (  # images of a folder that the test writes, instead of the hub's
    "++data.source=null",
    "++data.image_column=image",
    "++data.label_column=label",
    "data.test_split=null",
    "data.num_train=18",
    "data.batch_size=2",
    "data.image_size=32",
    "data.num_workers=0",
)
OF_THE_HUB = (
    *("cifar10", "cifar10_resnet18", "dcgan_images"),
    *("imagenet", "imagenet_resnet50", "imagenet_small_batch"),
)


def two_steps(experiment: str, folder: Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and network after two steps of `scripts/train.py experiment=<name>`, without a test."""
    from syncbn.launch.world import World
    from syncbn.run import build

    world = World("torchrun", rank=0, local_rank=0, world_size=2, local_world_size=2, num_nodes=1)
    with fits.launched(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = [f"experiment={experiment}", "trainer=ddp", *SHORT, f"output_root={folder}", "run_id=r"]
        if experiment in OF_THE_HUB:
            datasets.config.HF_DATASETS_CACHE = folder / "cache"
            overrides += [*IMAGES, f"data.folder={folder / 'images'}"]
        config = compose("train", overrides)
        torch.manual_seed(config.seed)
        data = build.build_data(config)
        net = build.build_network(config, data)
        task = build.build_task(config, net, data)
        trainer = build.build_trainer(config, build.build_callbacks(config, []), [], world)
        trainer.fit(task, data)
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        return {name: float(value) for name, value in metrics.items()}, fits.state(net)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "experiment", [pytest.param(e, marks=needs_fashion_mnist if "fashion" in e else ()) for e in EXPERIMENTS]
)
def test_it_trains_for_two_steps_on_two_ranks(ranks: Callable[[int], Ranks], experiment: str, tmp_path: Path) -> None:
    if experiment in OF_THE_HUB:
        write_images(tmp_path / "images")
    (metrics, net), (_, other) = ranks(2).run(two_steps, experiment, tmp_path)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    for key, value in net.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}")
