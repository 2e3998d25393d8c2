"""kornia's augmentation of whole batches on the device: the same in a resumed run, different on every rank."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from syncbn.data import ImageDataModule
from tests.ranks import Ranks
from tests.training import fits

SIZE = 32


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Horizontal ramps from black to white, from which crop and flip can be read off."""
    folder = tmp_path_factory.mktemp("ramps")
    pixels = np.tile(np.linspace(0, 255, SIZE).round().astype(np.uint8), (SIZE, 1))
    for split, count in (("train", 40), ("test", 4)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels).convert("RGB").save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


class Recorder(L.LightningModule):
    """Records the batches of training and validation steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []
        self.random_states: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.trained.append(batch[0].clone())
        self.random_states.append(torch.get_rng_state())
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated.append(batch[0].clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(folder: Path, **options: Any) -> ImageDataModule:
    plain = {"image_size": SIZE, "mean": 0.0, "std": 1.0, "num_workers": 0, "batch_size": 8, "min_crop": 0.3}
    return ImageDataModule(folder=str(folder), **{**plain, **options})


def fit(folder: Path, epochs: int = 1, ckpt_path: Path | None = None, **options: Any) -> Recorder:
    with fits.launched():
        of_trainer = {name: options.pop(name) for name in ("callbacks", "enable_checkpointing") if name in options}
        recorder, trainer = Recorder(), fits.trainer(max_epochs=epochs, **of_trainer)
        trainer.fit(recorder, data(folder, **options), ckpt_path=ckpt_path)
        return recorder


def images(folder: Path, **options: Any) -> Tensor:
    return torch.cat(fit(folder, **options).trained)


def test_it_is_a_function_of_the_seed_and_the_step(ramps: Path) -> None:
    reference = images(ramps, epochs=2)
    assert torch.equal(reference, images(ramps, epochs=2))
    assert torch.equal(reference, images(ramps, epochs=2, num_workers=2))
    assert not torch.equal(reference, images(ramps, epochs=2, seed=1))
    assert not torch.equal(*reference.chunk(2))  # identical images: only their augmentation differs


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_that_start_in_any_way_see_the_same(ramps: Path, method: str) -> None:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert torch.equal(images(ramps, num_workers=1), images(ramps))
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_resumed_run_sees_the_same(ramps: Path, tmp_path: Path) -> None:
    def saving() -> dict[str, Any]:
        callback = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=12)  # of 9 in an epoch
        return {"enable_checkpointing": True, "callbacks": [callback]}

    whole = fit(ramps, epochs=2, **saving()).trained
    resumed = fit(ramps, epochs=2, ckpt_path=tmp_path / "step=12.ckpt", **saving()).trained
    assert len(whole) == 18
    assert torch.equal(torch.cat(whole[12:]), torch.cat(resumed))


def test_global_random_numbers_are_left_alone(ramps: Path) -> None:
    states = fit(ramps).random_states
    assert len(states) == 9
    assert all(torch.equal(state, states[0]) for state in states)


def test_images_are_cropped_and_half_of_them_mirrored(ramps: Path) -> None:
    """A crop of share s and ratio r of a ramp is one that rises by √(s·r): at least √(0.3·3/4) of the whole."""
    rows = images(ramps, epochs=2).mean(dim=(1, 2))
    rises = rows[:, -1] - rows[:, 0]
    assert 0.3 < (rises < 0).float().mean() < 0.7
    assert 0.4 < rises.abs().min() < 0.7
    assert rises.abs().max() <= 1.01
    whole = images(ramps, flip=False, min_crop=1.0)
    assert torch.equal(whole, data(ramps).fetch("train", list(range(len(whole))), 0)[0])


def test_what_is_not_trained_on_is_left_as_it_is(ramps: Path) -> None:
    plain = data(ramps).fetch("test", [0], 0)[0]
    recorder = fit(ramps)
    assert all(torch.equal(image, plain[0]) for image in torch.cat(recorder.validated))
    assert all(torch.equal(image, plain[0]) for batch, _ in data(ramps).train_dataloader() for image in batch)


def seen_on_this_rank(folder: Path, cache: Path) -> Tensor:
    import datasets

    datasets.config.HF_DATASETS_CACHE = cache
    return images(folder, batch_size=4)


@pytest.mark.distributed
def test_ranks_augment_differently(ranks: Callable[[int], Ranks], ramps: Path, tmp_path: Path) -> None:
    first, second = ranks(2).run(seen_on_this_rank, ramps, tmp_path)
    assert first.shape == second.shape == (36, 3, SIZE, SIZE)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
