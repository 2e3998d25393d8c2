"""Our trainer compared with a plain loop over `DistributedDataParallel`, on two ranks.

Both train the same network on the same batches with the same optimizer, schedule and clipping. The trainer is that of
`syncbn train` with all default callbacks and the CSV logger. An epoch is measured from its start to the next one's: for
the plain loop its steps, validation, and a checkpoint of network and optimizer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers import evaluate, train_epoch
from benchmarks.rows import Row, paired
from syncbn.data import GlobalBatchDataModule
from syncbn.launch.leave import ends_at_once
from syncbn.launch.world import current_world
from syncbn.norm.core import compat
from syncbn.run import build, screen
from syncbn.run.compose import config_of
from syncbn.run.fit import fit, prepare
from syncbn.training.loggers import finish
from syncbn.training.optim import parameter_groups


@dataclass(frozen=True)
class Setting:
    """A training to time: overrides of `conf/train.yaml`, epochs and blocks."""

    overrides: tuple[str, ...]
    epochs: int  # per block; the first warms up
    blocks: int


SETTINGS = {
    "digits": Setting(("experiment=digits",), epochs=7, blocks=3),
    "resnet50": Setting(("model=resnet50", "model.width=64", "model.stem=imagenet"), epochs=3, blocks=2),
}


class Noise(GlobalBatchDataModule):
    """Noise images of ResNet-50's size: 4 per rank, for three training steps and one validation step."""

    num_classes, in_channels, image_size, class_names = 1000, 3, (224, 224), tuple(map(str, range(1000)))

    def __init__(self) -> None:
        super().__init__(batch_size=4, eval_batch_size=4, seed=0, drop_last=False)
        self.images = torch.randn(8, 3, 224, 224)

    def num_samples(self, part: str) -> int:
        return 24 if part == "train" else 8

    def fetch(self, part: str, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        return self.images[torch.tensor(indices) % 8], torch.tensor(indices)


class Clock(Callback):
    """Start and end times of each epoch and of its last batch."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.steps_end: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.steps_end.append(time.perf_counter())

    def seconds(self) -> list[tuple[float, float]]:
        """Seconds of (whole epoch, its steps) for each epoch but the first and the last, whose end isn't recorded."""
        ends = self.starts[1:]
        both = [
            (end - start, steps - start) for start, steps, end in zip(self.starts, self.steps_end, ends, strict=False)
        ]
        return both[1:]


def measure() -> list[Row]:
    """Time an epoch on the digits and steps of a ResNet-50."""
    area = "the trainer, all default callbacks and the CSV logger, 2 ranks of 1 thread"
    epochs, steps = (_on_two_ranks(name) for name in SETTINGS)
    loop = "plain DDP loop"
    return [
        paired(area, "an epoch on digits", loop, "ms", [(1e3 * a[0], 1e3 * b[0]) for a, b in epochs], 1.25),
        paired(area, "its training steps alone", loop, "ms", [(1e3 * a[1], 1e3 * b[1]) for a, b in epochs]),
        paired(area, "three steps of ResNet-50", loop, "ms", [(1e3 * a[1], 1e3 * b[1]) for a, b in steps], 1.03),
    ]


def _on_two_ranks(name: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "seconds.json")
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "benchmarks.trainer"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SYNCBN_RUN_ID": "bench"}
        subprocess.run([*launch, name, str(answer)], check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(answer.read_text())


def main(name: str, answer: Path) -> None:
    """Run one rank: blocks of epochs by the trainer and by the plain loop in turns; rank 0 writes their seconds."""
    torch.set_num_threads(1)
    screen.quiet()
    setting = SETTINGS[name]
    overrides = ["trainer=ddp", f"trainer.max_epochs={setting.epochs}", f"output_root={answer.parent}"]
    config = config_of([*overrides, "trainer.enable_progress_bar=false", "threads=1", *setting.overrides])
    pairs = []
    for block in range(setting.blocks):
        config.paths.output_dir = str(answer.with_name(f"block-{block}"))
        clock = Clock()
        run = prepare(config, current_world(), data=None if name == "digits" else Noise(), callbacks=[clock])
        fit(run)
        finish(run.loggers)
        pairs += zip(clock.seconds(), _plain(config, run.data, setting.epochs), strict=True)
    if current_world().rank == 0:
        answer.write_text(json.dumps(pairs))
    torch.distributed.barrier()


def _plain(config: DictConfig, data: GlobalBatchDataModule, epochs: int) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    net = DistributedDataParallel(
        build.build_network(config, data), **compat.ddp_without_buffers(), gradient_as_bucket_view=True
    )
    train_loader, val_loader = data.train_dataloader(), data.val_dataloader()
    optimizer = hydra.utils.instantiate(config.optimizer)(parameter_groups(net))
    scheduler = hydra.utils.instantiate(config.scheduler)(optimizer, total_steps=epochs * len(train_loader))
    clock = Clock()
    for epoch in range(epochs):
        clock.on_train_epoch_start()
        train_loader.batch_sampler.set_epoch(epoch)
        train_epoch(net, train_loader, optimizer, scheduler, config.trainer.gradient_clip_val)
        clock.steps_end.append(time.perf_counter())
        evaluate(net, val_loader)
        if current_world().rank == 0:
            state = {"net": net.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, Path(config.paths.output_dir, "plain.pt"))
    return clock.seconds()


if __name__ == "__main__":
    with ends_at_once():
        main(sys.argv[1], Path(sys.argv[2]))
