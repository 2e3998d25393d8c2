"""Corruptions against scipy's filters and the definitions."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from syncbn.data import Corruptions, DigitsDataModule
from syncbn.data.corruptions import CORRUPTIONS


def digits(count: int = 5) -> Tensor:
    return DigitsDataModule().images[:count]


def corrupted(images: Tensor, **amounts: float) -> Tensor:
    return Corruptions(amounts, len(images))(images, torch.arange(len(images)))


def test_contrast_then_brightness_is_the_affine_map() -> None:
    x = digits()
    torch.testing.assert_close(corrupted(x, contrast=0.4, brightness=0.5), 0.4 * x + 0.5)


def test_inversion_goes_from_the_image_to_its_negative() -> None:
    x = digits()
    torch.testing.assert_close(corrupted(x, inversion=1.0), -x)
    torch.testing.assert_close(corrupted(x, inversion=0.0), x)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_blur_is_scipys(sigma: float) -> None:
    x = digits()
    expected = [scipy.ndimage.gaussian_filter(i[0].numpy(), sigma, mode="nearest", truncate=3.0) for i in x]
    np.testing.assert_allclose(corrupted(x, blur=sigma)[:, 0], np.stack(expected), atol=1e-5)
    torch.testing.assert_close(corrupted(x, blur=0.0), x)


def test_rotation_is_scipys_away_from_the_border() -> None:
    x = torch.nn.functional.interpolate(digits(), (8, 12))
    torch.testing.assert_close(corrupted(digits(), rotation=90), digits().rot90(1, (2, 3)), atol=1e-5, rtol=0)
    turned = [scipy.ndimage.rotate(i[0].numpy(), 20, reshape=False, order=1, mode="nearest") for i in x]
    np.testing.assert_allclose(corrupted(x, rotation=20)[:, 0, 2:-2, 2:-2], np.stack(turned)[:, 2:-2, 2:-2], atol=1e-4)


def test_noise_is_a_function_of_the_index_and_the_seed() -> None:
    images = DigitsDataModule().images
    noise = Corruptions({"noise": 0.3}, len(images))
    rows = torch.tensor([7, 3, 9])
    alone = torch.cat([noise(images[i : i + 1], torch.tensor([i])) for i in rows.tolist()])
    assert torch.equal(noise(images[rows], rows), alone)
    whole = noise(images, torch.arange(len(images))) - images
    assert float(whole.std()) == pytest.approx(0.3, rel=0.01)
    other = Corruptions({"noise": 0.3}, len(images), seed=1)(images[rows], rows)
    assert not torch.equal(other, alone)


def test_every_part_of_the_digits_is_corrupted_once() -> None:
    data = DigitsDataModule(corruptions={"contrast": 0.0, "brightness": 7.0})
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, _ in loader:
            assert (images == 7).all()


def test_an_empty_batch_stays_empty() -> None:
    assert corrupted(digits(0), **dict.fromkeys(CORRUPTIONS, 1)).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"contrats": 1.0}, "did you mean 'contrast'"),
        ({"blur": -1.0}, "blur must be at least 0, got -1"),
        ({"noise": -1.0}, "noise must be at least 0"),
    ],
)
def test_a_wrong_corruption_says_what_is_allowed(amounts: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corruptions(amounts, 1)
