"""Scenes: their contents, labels where the ink is, and reproducibility."""

import numpy as np
import pytest
import torch

from syncbn.data import DigitsDataModule, ScenesDataModule


def test_a_scene_is_a_function_of_seed_epoch_and_index() -> None:
    data = ScenesDataModule(num_train=10)
    images, labels = data.fetch("train", [3, 7], 2)
    again, _ = ScenesDataModule(num_train=10, batch_size=5).fetch("train", [7], 2)

    assert images.shape == (2, 1, 32, 32)
    assert images.dtype == torch.float32
    assert labels.shape == (2, 32, 32)
    assert labels.dtype == torch.int64
    assert torch.equal(images[1], again[0])
    assert not torch.equal(images[1], data.fetch("train", [7], 3)[0][0])
    assert not torch.equal(images[1], ScenesDataModule(num_train=10, seed=1).fetch("train", [7], 2)[0][0])


def test_validation_and_test_stay_the_same_for_every_epoch_and_seed() -> None:
    first, second = ScenesDataModule(seed=0), ScenesDataModule(seed=9)
    for part in ("val", "test"):
        assert torch.equal(first.fetch(part, [5], 0)[0], second.fetch(part, [5], 4)[0])
    assert not torch.equal(first.fetch("val", [5], 0)[0], first.fetch("test", [5], 0)[0])


def test_a_pixel_has_the_digits_label_where_its_ink_is() -> None:
    """One digit at its own size, without noise: found again in scikit-learn's data, at its place."""
    data = ScenesDataModule(max_digits=1, max_scale=1.0, noise=0.0)
    digits = DigitsDataModule()
    for index in range(20):
        image, labels = (x[0] for x in data.fetch("test", [index], 0))
        (label,) = set(labels.unique().tolist()) - {0}
        ink = labels > 0
        candidates = digits.test_indices[digits.labels[digits.test_indices] == label - 1]
        shapes = digits.images[candidates, 0] > -0.25
        windows = ink.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
        distances = (windows[:, None, :].float() - shapes.reshape(1, -1, 64).float()).abs().sum(dim=2)
        assert distances.min() == 0
        assert int(ink.sum()) in {int(shape.sum()) for shape in shapes}
        assert image[0][ink].mean() > image[0][~ink].mean()


def test_the_training_scenes_show_no_digit_of_the_test() -> None:
    data = ScenesDataModule()
    assert not set(data.digits.train_indices.tolist()) & set(data.digits.test_indices.tolist())
    seen: list[str] = []
    fetch = data.digits.fetch
    data.digits.fetch = lambda part, indices, epoch: seen.append(part) or fetch(part, indices, epoch)
    data.fetch("train", [0, 1], 0)
    assert set(seen) == {"train"}


def test_scenes_have_every_class_several_digits_and_noise_of_the_given_size() -> None:
    data = ScenesDataModule(noise=0.0)
    _, labels = data.fetch("train", list(range(150)), 0)
    assert set(labels.unique().tolist()) == set(range(11))
    assert 0.7 < (labels == 0).float().mean() < 0.98
    assert max(len(scene.unique()) for scene in labels) >= 4
    clean, _ = data.fetch("train", [0], 0)
    noisy, _ = ScenesDataModule(noise=0.2).fetch("train", [0], 0)
    np.testing.assert_allclose((noisy - clean).std(), 0.2, rtol=0.1)


def test_loaders_cut_the_scenes_for_the_ranks() -> None:
    data = ScenesDataModule(num_train=9, num_val=3, num_test=4, batch_size=2, eval_batch_size=2)
    assert [len(labels) for _, labels in data.train_dataloader()] == [2, 2, 2, 2, 1]
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 3
    images, labels = data.fetch("train", [], 0)
    assert images.shape == (0, 1, 32, 32)
    assert labels.shape == (0, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_val": 0}, "num_val must be at least 1, got 0"),
        ({"max_scale": 5.0}, "max_scale must be from 1 to 4, got 5.0: digits of 8 pixels, a canvas of 32"),
        ({"noise": -0.1}, "noise must be at least 0, got -0.1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScenesDataModule(**arguments)
