"""Fashion-MNIST: its parts, its batches, and where it is found."""

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from syncbn.data import Corruptions, FashionMNISTDataModule, fashion_mnist
from syncbn.data.fashion_mnist import PACKAGE
from tests.data.fashion_mnist import needs_fashion_mnist

pytestmark = needs_fashion_mnist
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def raw(name: str) -> np.ndarray:
    """Values of a file, by an independent reader."""
    data = np.frombuffer(gzip.decompress((PACKAGE / f"{name}.gz").read_bytes()), np.uint8)
    return data[16:].reshape(-1, 28, 28) if "images" in name else data[8:]


def batches(loader: Any, epoch: int = 0) -> tuple[Tensor, Tensor]:
    loader.batch_sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_the_parts_are_disjoint_complete_and_balanced() -> None:
    data = FashionMNISTDataModule()
    assert [data.num_samples(part) for part in ("train", "val", "test")] == [54_000, 6_000, 10_000]
    seen = torch.cat([data.train_indices, data.val_indices])
    assert sorted(seen.tolist()) == list(range(60_000))
    assert data.test_indices.tolist() == list(range(60_000, 70_000))
    for part, count in ((data.train_indices, 5_400), (data.val_indices, 600), (data.test_indices, 1_000)):
        assert np.bincount(data.labels[part]).tolist() == [count] * 10


def test_batches_are_the_files_pixels_and_labels() -> None:
    data = FashionMNISTDataModule()
    images, labels = batches(data.test_dataloader())
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (images.min(), images.max()) == (-1, 1)
    np.testing.assert_allclose(images[:, 0].numpy(), raw(NAMES[2]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(labels, raw(NAMES[3]))
    chosen = [5, 77, 59]
    images, labels = data.fetch("train", chosen, epoch=3)
    rows = data.train_indices[chosen]
    np.testing.assert_allclose(images[:, 0].numpy(), raw(NAMES[0])[rows] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(labels, raw(NAMES[1])[rows])


def test_the_classes_look_like_their_names() -> None:
    """A wrong order of class names wouldn't crash: trousers are dark in the middle, sandals lighter."""
    data = FashionMNISTDataModule()
    images, labels = data.fetch("val", list(range(6_000)), 0)
    ink = {name: images[labels == i].mean() for i, name in enumerate(data.class_names)}
    assert min(ink, key=lambda name: ink[name]) == "Sandal"
    trousers, dresses = (images[labels == data.class_names.index(n), 0] for n in ("Trouser", "Dress"))
    assert trousers[:, 24, 13:15].mean() < dresses[:, 24, 13:15].mean() - 0.5  # between the legs


def test_a_subset_is_balanced_fixed_by_its_seed_and_part_of_a_larger_one() -> None:
    small = FashionMNISTDataModule(small=1_234)
    assert len(small.train_indices) == 1_234
    counts = np.bincount(small.labels[small.train_indices])
    assert counts.max() - counts.min() <= 1
    whole = FashionMNISTDataModule(seed=9)
    assert torch.equal(small.train_indices, whole.train_indices[:1_234])
    assert torch.equal(small.val_indices, whole.val_indices)
    other = FashionMNISTDataModule(small=1_234, split_seed=1)
    assert not torch.equal(small.train_indices, other.train_indices)
    assert not torch.equal(small.val_indices, other.val_indices)
    assert torch.equal(small.test_indices, other.test_indices)


def test_the_order_is_that_of_seed_and_epoch() -> None:
    def order(epoch: int, **options: Any) -> Tensor:
        return batches(FashionMNISTDataModule(small=300, **options).train_dataloader(), epoch)[0]

    assert torch.equal(order(2, batch_size=32), order(2, batch_size=50))
    assert not torch.equal(order(2), order(3))
    assert not torch.equal(order(2), order(2, seed=1))


def test_every_part_is_corrupted_as_its_place_in_the_data_says() -> None:
    data = FashionMNISTDataModule(small=200, corruptions={"shot_noise": 3})
    images, _ = data.fetch("test", [3, 1], 0)
    plain, _ = FashionMNISTDataModule().fetch("test", [3, 1], 0)
    expected = Corruptions({"shot_noise": 3}, 70_000)(plain, torch.tensor([60_003, 60_001]))
    assert torch.equal(images, expected)
    assert not torch.equal(data.fetch("train", [0], 0)[0], FashionMNISTDataModule(small=200).fetch("train", [0], 0)[0])


def test_ranks_by_class_see_their_own() -> None:
    data = FashionMNISTDataModule(small=1_000, shard_by_class=True)
    np.testing.assert_array_equal(data.train_classes(), data.labels[data.train_indices])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_the_four_files_is_read(suffix: str, tmp_path: Path) -> None:
    for name in NAMES:
        data = (PACKAGE / f"{name}.gz").read_bytes()
        (tmp_path / f"{name}{suffix}").write_bytes(data if suffix else gzip.decompress(data))
    found = FashionMNISTDataModule(folder=str(tmp_path))
    assert torch.equal(found.images, FashionMNISTDataModule().images)


def test_mnist_in_files_of_the_same_names_is_refused(tmp_path: Path) -> None:
    """Both have files named train-images-idx3-ubyte.gz, and are easily confused."""
    for name in NAMES:
        shape = (60_000 if "train" in name else 10_000, *((28, 28) if "images" in name else ()))
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (tmp_path / name).write_bytes(header + bytes(int(np.prod(shape))))
    with pytest.raises(ValueError, match=r"isn't Fashion-MNIST: its values have another checksum.*apt-get install"):
        FashionMNISTDataModule(folder=str(tmp_path))


def test_one_pixel_of_another_value_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "copy")
    labels = tmp_path / "copy" / f"{NAMES[1]}.gz"
    changed = bytearray(gzip.decompress(labels.read_bytes()))
    changed[-1] ^= 1
    labels.write_bytes(gzip.compress(bytes(changed), 1))
    with pytest.raises(ValueError, match="another checksum"):
        FashionMNISTDataModule(folder=str(tmp_path / "copy"))


def test_a_folder_without_a_file_says_which_and_how_to_get_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"no file train-images-idx3-ubyte.*apt-get install dataset-fashion-mnist"):
            FashionMNISTDataModule(folder=str(folder))
    shutil.copy(PACKAGE / f"{NAMES[0]}.gz", tmp_path)
    with pytest.raises(ValueError, match=f"no file {NAMES[1]}"):
        FashionMNISTDataModule(folder=str(tmp_path))


def test_without_the_package_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a data set in the hub's format: the first images, as PNG files in Parquet."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    values = []
    for split, images, labels in (("train", *NAMES[:2]), ("test", *NAMES[2:])):
        values += [raw(images)[:20], raw(labels)[:20]]
        table = {"image": list(values[-2]), "label": values[-1].tolist()}
        (tmp_path / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table, features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(fashion_mnist, "PACKAGE", tmp_path / "not installed")
    monkeypatch.setattr(fashion_mnist, "SOURCE", str(tmp_path / "set"))
    for expected, array in zip(values, fashion_mnist._from_hub(), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == np.uint8
    fashion_mnist._load.cache_clear()
    with pytest.raises(ValueError, match="of the hub isn't Fashion-MNIST"):  # these are its first images alone
        FashionMNISTDataModule()
    monkeypatch.setattr(fashion_mnist, "SOURCE", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"isn't here, nor to be had from the hub: `apt-get install"):
        FashionMNISTDataModule()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"val_fraction": 1.0}, "val_fraction must be above 0 and below 1, got 1.0"),
        ({"small": 0}, "small must be at least 1, got 0"),
        ({"small": 54_001}, "small must be at most the 54000 training images that there are, got 54001"),
        ({"corruptions": {"fogg": 1}}, "did you mean 'fog'"),
        ({"corruptions": {"fog": 6}}, "fog has severities from 1 to 5, got 6"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FashionMNISTDataModule(**arguments)
