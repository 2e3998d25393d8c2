"""The digits: their parts and batches."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from syncbn.data import BatchLoader, DigitsDataModule
from syncbn.data.augment import RandomAffine


def epoch_of(loader: BatchLoader, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    loader.batch_sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_the_parts_are_disjoint_complete_and_stratified() -> None:
    data = DigitsDataModule()
    parts = [data.train_indices, data.val_indices, data.test_indices]

    assert sorted(torch.cat(parts).tolist()) == list(range(1797))
    assert [len(part) for part in parts] == [1079, 359, 359]
    whole = np.bincount(load_digits().target) / 1797
    for part in parts:
        np.testing.assert_allclose(np.bincount(data.labels[part]) / len(part), whole, atol=0.005)


def test_the_split_follows_its_own_seed_alone() -> None:
    test = DigitsDataModule(seed=0).test_indices
    assert torch.equal(test, DigitsDataModule(seed=7, batch_size=4).test_indices)
    assert not torch.equal(test, DigitsDataModule(split_seed=1).test_indices)


def test_batches_are_the_scaled_pixels_and_their_labels() -> None:
    data = DigitsDataModule(augment=False)
    digits = load_digits()

    for loader, part in [(data.val_dataloader(), data.val_indices), (data.test_dataloader(), data.test_indices)]:
        images, labels = epoch_of(loader, 0)
        assert images.dtype == torch.float32
        assert images.shape == (359, 1, 8, 8)
        np.testing.assert_allclose(images[:, 0].numpy(), digits.images[part] / 8 - 1)
        np.testing.assert_array_equal(labels.numpy(), digits.target[part])
    images, labels = epoch_of(data.train_dataloader(), 3)
    order = np.lexsort(images.flatten(1).numpy().T)
    expected = digits.images[data.train_indices].reshape(-1, 64) / 8 - 1
    np.testing.assert_allclose(images.flatten(1).numpy()[order], expected[np.lexsort(expected.T)])


def test_augmentation_changes_with_seed_and_epoch_and_not_with_the_batch_size() -> None:
    def images(epoch: int, **options: int) -> torch.Tensor:
        return epoch_of(DigitsDataModule(**options).train_dataloader(), epoch)[0]

    reference = images(2, batch_size=16)
    assert torch.equal(reference, images(2, batch_size=16))
    torch.testing.assert_close(reference, images(2, batch_size=50))
    assert not torch.equal(reference, images(3, batch_size=16))
    assert not torch.equal(reference, images(2, batch_size=16, seed=1))


def affine(**limits: float) -> RandomAffine:
    return RandomAffine(**{"max_shift": 0, "max_rotation": 0, "max_scale": 0, **limits}, num_samples=4, seed=0, fill=-1)


def test_an_augmentation_within_no_limits_is_the_identity() -> None:
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(affine()(images, torch.arange(4), 0), images)


@pytest.mark.parametrize(
    ("limits", "draw", "expected"),
    [  # the image is 4×6, so that rows and columns can't be confused
        ({"max_shift": 2.0}, [1, 0, 0, 0], lambda image: np.pad(image, ((0, 0), (2, 0)), constant_values=-1)[:, :6]),
        ({"max_shift": 2.0}, [0, 1, 0, 0], lambda image: np.pad(image, ((2, 0), (0, 0)), constant_values=-1)[:4]),
        ({"max_rotation": 180.0}, [0, 0, 1, 0], lambda image: image[::-1, ::-1]),
    ],
)
def test_limits_are_pixels_and_degrees(limits, draw, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncbn.data.augment._uniform", lambda *_: torch.tensor([draw], dtype=torch.float32))
    image = np.random.default_rng(0).random((4, 6)).astype(np.float32)

    moved = affine(**limits)(torch.from_numpy(image)[None, None], torch.tensor([0]), epoch=0)

    np.testing.assert_allclose(moved[0, 0].numpy(), expected(image), atol=1e-5)


def test_a_loader_goes_on_where_it_was_saved() -> None:
    whole = [labels for _, labels in DigitsDataModule(batch_size=100).train_dataloader()]
    interrupted = DigitsDataModule(batch_size=100).train_dataloader()
    batches = iter(interrupted)
    seen = [next(batches)[1] for _ in range(4)]

    resumed = DigitsDataModule(batch_size=100).train_dataloader()
    resumed.load_state_dict(interrupted.state_dict())
    seen += [labels for _, labels in resumed]

    assert len(seen) == len(whole) == 11
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))
    assert len(list(resumed)) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"val_fraction": 0.0}, "val_fraction must be above 0 and below 1, got 0.0"),
        ({"test_fraction": 1.5}, "test_fraction must be above 0 and below 1, got 1.5"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "nothing would be left to train on"),
        ({"max_shift": 9.0}, r"max_shift \(pixels\) must be at least 0 and below 8, got 9.0"),
        ({"max_rotation": -1.0}, r"max_rotation \(degrees\) must be at least 0"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="more than the 1079 there are; allowed: batch_size <= 1079"):
        DigitsDataModule(batch_size=1080).train_dataloader()
