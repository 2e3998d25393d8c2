import subprocess
import sys
from pathlib import Path

import syncbn
import torch

from my_project.data import Shapes, draw
from my_project.network import Net
from my_project.norm import PixelNorm


def test_the_network_makes_logits():
    assert Net(num_classes=3, in_channels=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_the_norm_divides_by_the_root_mean_square():
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    expected = torch.nn.functional.normalize(x, dim=1) * 5**0.5
    torch.testing.assert_close(PixelNorm(5, eps=1e-12)(x), expected)


def test_the_norm_takes_the_place_of_batch_norms():
    net = syncbn.convert(Net(num_classes=3, in_channels=1), "pixel")
    assert sum(isinstance(layer, PixelNorm) for layer in net.modules()) == 3


def test_the_data_are_the_same_every_time_and_of_all_classes():
    images, labels = draw(50, seed=3)
    assert torch.equal(images, draw(50, seed=3)[0])
    assert set(labels.tolist()) == {0, 1, 2}
    data = Shapes(batch_size=7)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].shape == (7, 1, 16, 16)


def test_the_experiment_runs(tmp_path):
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", "callbacks=none"]
    command = [sys.executable, "-m", "syncbn", "train", "experiment=shapes", f"output_root={tmp_path}", *short]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
