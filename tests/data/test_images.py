"""Images from generated folders: sizes, order, workers, damage, and no network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from syncbn.data import ImageDataModule
from tests.cli.conftest import run_script
from tests.data.image_files import CLASSES, SHADES, write_images
from tests.ranks import Ranks
from tests.run.here import train as train_here
from tests.training import fits

PLAIN = {"flip": False, "min_crop": 1.0, "mean": 0.0, "std": 1.0, "num_workers": 0, "image_size": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def epoch_of(data: ImageDataModule, epoch: int = 0) -> tuple[Tensor, Tensor]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_every_image_comes_with_its_folders_label(folder: Path) -> None:
    data = ImageDataModule(folder=str(folder), batch_size=4, eval_batch_size=5, **PLAIN)
    assert data.class_names == CLASSES
    assert [data.num_samples(part) for part in ("train", "val", "test")] == [16, 2, 18]

    images, labels = zip(*data.test_dataloader(), strict=True)
    images, labels = torch.cat(images), torch.cat(labels)
    assert images.shape == (18, 3, 20, 20)
    shades = (images[:, :, :, 10].mean(dim=(1, 2)) * 255).round().int().tolist()
    assert sorted(shades) == sorted(SHADES[name] + i for name in CLASSES for i in range(6))
    assert [CLASSES[label] for label in labels] == [
        next(name for name in CLASSES if SHADES[name] <= shade < SHADES[name] + 6) for shade in shades
    ]
    trained, validated = epoch_of(data)[0], torch.cat([x for x, _ in data.val_dataloader()])
    shades = (torch.cat([trained, validated])[:, :, :, 10].mean(dim=(1, 2)) * 255).round().int().tolist()
    assert len(set(shades)) == 18


def test_the_middle_is_kept_and_channels_are_normalized(folder: Path) -> None:
    """24 columns become 20: of the two red ones at the left edge none is left."""
    options = {**PLAIN, "mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 2.0]}
    data = ImageDataModule(folder=str(folder), **options)
    plain, _ = ImageDataModule(folder=str(folder), **PLAIN).fetch("test", [0, 7], 0)
    images, _ = data.fetch("test", [0, 7], 0)
    assert (plain[:, 0] == plain[:, 1]).all()
    for channel, (mean, std) in enumerate(zip(options["mean"], options["std"], strict=True)):
        torch.testing.assert_close(images[:, channel], (plain[:, channel] - mean) / std)
    small, _ = ImageDataModule(folder=str(folder), **{**PLAIN, "image_size": 8, "in_channels": 1}).fetch("test", [3], 0)
    assert small.shape == (1, 1, 8, 8)


def test_a_validation_folder_is_used_where_there_is_one(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "three", count=2, splits=("train", "validation", "test"))
    data = ImageDataModule(folder=str(folder), **PLAIN)
    assert [data.num_samples(part) for part in ("train", "val", "test")] == [6, 6, 6]


def test_a_loader_with_workers_goes_on_where_it_was_saved(folder: Path) -> None:
    options = {**PLAIN, "batch_size": 3, "num_workers": 1}
    whole = [labels for _, labels in ImageDataModule(folder=str(folder), **options).train_dataloader()]
    interrupted = ImageDataModule(folder=str(folder), **options).train_dataloader()
    batches = iter(interrupted)
    seen = [next(batches)[1] for _ in range(2)]
    resumed = ImageDataModule(folder=str(folder), **options).train_dataloader()
    resumed.load_state_dict(interrupted.state_dict())
    seen += [labels for _, labels in resumed]
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))


def test_the_split_to_test_on_can_be_named(tmp_path: Path) -> None:
    """As ImageNet's, whose "test" has no labels: validation is then a part of the training images."""
    folder = write_images(tmp_path / "three", count=4, splits=("train", "validation", "test"))
    data = ImageDataModule(folder=str(folder), test_split="validation", val_fraction=0.25, **PLAIN)
    assert [data.num_samples(part) for part in ("train", "val", "test")] == [9, 3, 12]
    with pytest.raises(ValueError, match="expected splits 'train' and 'nowhere', got train, validation, test"):
        ImageDataModule(folder=str(folder), test_split="nowhere", **PLAIN).test_dataloader()


def test_a_corrupt_image_is_named_and_fatal_or_left_out(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "damaged", count=2)
    broken = folder / "test" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"can't read the image {broken} .*data.on_corrupt=skip"):
        ImageDataModule(folder=str(folder), **PLAIN).fetch("test", list(range(6)), 0)
    skipping = ImageDataModule(folder=str(folder), on_corrupt="skip", **PLAIN)
    with pytest.warns(UserWarning, match=f"left out an image that can't be read: {broken}"):
        images, labels = skipping.fetch("test", list(range(6)), 0)
    assert labels.tolist() == [0, 0, 1, 2, 2]
    assert len(images) == 5


def classes_seen(folder: Path, cache: Path) -> list[int]:
    """The labels of an epoch on this rank, with `shard_by_class`."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = cache
    with fits.launched():
        data = ImageDataModule(folder=str(folder), batch_size=2, shard_by_class=True, **PLAIN)
        data.trainer = fits.trainer()
        return epoch_of(data)[1].tolist()


@pytest.mark.distributed
def test_ranks_see_their_own_classes(ranks: Callable[[int], Ranks], folder: Path, tmp_path: Path) -> None:
    first, second = ranks(2).run(classes_seen, folder, tmp_path)
    assert set(first) == {0, 2}
    assert set(second) == {1}
    assert len(first) + len(second) == 16


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train", "data=cifar10", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "can't load 'uoft-cs/cifar10' of the hub" in done.err
    assert "data=image_folder" in done.err
    assert not list((tmp_path / "outputs").glob("*"))


@pytest.mark.slow
def test_a_folder_of_images_trains_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    arguments = [f"data.folder={folder}", "data.batch_size=4", "data.image_size=16", "model.width=4"]
    done = run_script(
        tmp_path,
        "train",
        "data=image_folder",
        *arguments,
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.code == 0, done.err
    assert "test accuracy:" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either source or folder .*, got source=None and folder=None"),
        ({"source": "a", "folder": "b"}, "give either source or folder"),
        ({"folder": "nowhere"}, "can't load the folder 'nowhere'"),
        ({"folder": "x", "in_channels": 2}, "in_channels must be 1 or 3, got 2"),
        ({"folder": "x", "min_crop": 0.0}, "min_crop must be above 0 and at most 1, got 0.0"),
        ({"folder": "x", "on_corrupt": "ignore"}, "on_corrupt must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


def test_the_example_of_a_models_summary_is_no_batch(folder: Path, tmp_path: Path) -> None:
    """Lightning sends it through the DataModule as one."""
    short = ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    data = ["data=image_folder", f"data.folder={folder}", "data.image_size=16", "data.batch_size=4"]
    words = [*data, *short, "model=resnet18", "model.width=4", "callbacks=[default,model_summary]"]
    run = train_here(tmp_path, "run", *words, "trainer.log_every_n_steps=1", "data.num_workers=0")
    assert run.checkpoint()["global_step"] == 1
