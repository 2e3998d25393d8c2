"""Runs of `syncbn train` within this process, from their overrides to their folder."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from syncbn.launch.world import World
from syncbn.run.check import conf_dir

SHORT = ("model=mlp", "data=digits", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.log_every_n_steps=5")
ALONE = World("python", 0, 0, 1, 1, 1)


@dataclass
class RunHere:
    """A run that has ended.

    Attributes:
        folder: the run's.
        objective: what a sweeper is told.
    """

    folder: Path
    objective: float | None

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        """One of its checkpoints."""
        return torch.load(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)

    def column(self, name: str) -> list[float]:
        """The values of a metric, in order."""
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def train(root: Path, run_id: str, *overrides: str, world: World = ALONE) -> RunHere:
    """Train as `syncbn train model=mlp trainer.max_epochs=1 <overrides>` does, on one rank of `world`."""
    from syncbn.run import fit

    chosen = {override.lstrip("+~").partition("=")[0] for override in overrides}
    words = [*(word for word in SHORT if word.partition("=")[0] not in chosen), *overrides]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [*words, f"output_root={root}", f"run_id={run_id}"], return_hydra_config=True)
    hydra = config.hydra
    with open_dict(config):
        del config["hydra"]
    return RunHere(root / run_id, fit.train(config, world, hydra))
