"""The fifteen common corruptions: common properties, and each against an independent computation."""

import io
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from syncbn.data import Corruptions
from syncbn.data.common_corruptions import KINDS, SEVERITIES, Draws, defocus_blur, motion_blur, zoom_blur


def shapes(count: int = 60, height: int = 28, width: int = 28, channels: int = 1) -> Tensor:
    """Smooth grey blobs with edges, values from -1 to 1."""
    generator = np.random.default_rng(0)
    noise = scipy.ndimage.gaussian_filter(generator.standard_normal((count, channels, height, width)), (0, 0, 2, 2))
    blobs = np.where(noise > 0.03, np.clip(0.5 + 4 * noise, 0, 1), 0)
    return torch.from_numpy(2 * blobs - 1).float()


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0, first: int = 0) -> Tensor:
    rows = torch.arange(first, first + len(images))
    return Corruptions({name: severity}, 1_000, seed)(images, rows)


def draws(count: int, seed: int = 0) -> Draws:
    return Draws([np.random.default_rng([seed, i]) for i in range(count)], torch.zeros(()))


def test_the_fifteen_kinds_are_there() -> None:
    assert len(KINDS) == 15
    assert all(len(kind.strengths) == 5 for kind in KINDS.values())


@pytest.mark.parametrize("name", KINDS)
def test_each_severity_is_further_from_the_image_and_within_its_range(name: str) -> None:
    images = shapes()
    before = 0.0
    for severity in SEVERITIES:
        found = corrupted(images, name, severity)
        assert found.shape == images.shape
        assert found.dtype == torch.float32
        assert float(found.min()) >= -1
        assert float(found.max()) <= 1
        distance = float((found - images).abs().mean())
        assert distance > before * 1.02
        before = distance
    assert torch.equal(images, shapes()), "the images themselves stay"


@pytest.mark.parametrize("name", KINDS)
def test_it_is_a_function_of_seed_and_index(name: str) -> None:
    images = shapes(6)
    whole = corrupted(images, name, 4)
    assert torch.equal(corrupted(images, name, 4), whole)
    alone = torch.cat([corrupted(images[i : i + 1], name, 4, first=i) for i in range(6)])
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)
    fixed = {"defocus_blur", "zoom_blur", "bright", "low_contrast", "pixelate", "jpeg_compression"}
    assert torch.equal(corrupted(images, name, 4, seed=1), whole) == (name in fixed)
    assert torch.equal(corrupted(images, name, 4, first=7), whole) == (name in fixed)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(3, 20, 33), (1, 8, 8), (1, 1, 5), (3, 2, 2)])
def test_it_takes_colors_and_images_of_any_size(name: str, size: tuple[int, int, int]) -> None:
    channels, height, width = size
    images = shapes(4, height, width, channels)
    for severity in (1, 5):
        found = corrupted(images, name, severity)
        assert found.shape == images.shape
        assert found.isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_it_keeps_the_dtype(name: str) -> None:
    images = shapes(4)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        found = corrupted(images.to(dtype), name, 2)
        assert found.dtype == dtype
        assert float((found.float() - corrupted(images, name, 2)).abs().mean()) < tolerance


def test_noise_has_the_deviation_and_share_that_its_strength_says() -> None:
    grey = torch.zeros(50, 1, 28, 28)  # in the middle of the range, so that nothing is cut off
    for severity, deviation in enumerate(KINDS["gaussian_noise"].strengths[:3], start=1):
        noise = corrupted(grey, "gaussian_noise", severity) / 2
        assert float(noise.std()) == pytest.approx(deviation, rel=0.02)
        assert float(noise.mean()) == pytest.approx(0, abs=0.002)
    for severity, share in enumerate(KINDS["impulse_noise"].strengths, start=1):
        found = corrupted(grey, "impulse_noise", severity)
        assert float((found == 1).float().mean()) == pytest.approx(share / 2, abs=0.008)
        assert float((found == -1).float().mean()) == pytest.approx(share / 2, abs=0.008)
        assert float((found == 0).float().mean()) == pytest.approx(1 - share, abs=0.012)
    for severity, photons in enumerate(KINDS["shot_noise"].strengths[:4], start=1):
        counts = (corrupted(grey - 0.6, "shot_noise", severity) + 1) / 2 * photons
        torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
        assert float(counts.mean()) == pytest.approx(0.2 * photons, rel=0.03)
        assert float(counts.var()) == pytest.approx(0.2 * photons, rel=0.1)  # a Poisson count's own


def test_light_and_contrast_are_the_formulas() -> None:
    x = (shapes(5) + 1) / 2
    for severity in SEVERITIES:
        light, factor = KINDS["bright"].strengths[severity - 1], KINDS["low_contrast"].strengths[severity - 1]
        expected = 2 * (x + light).clamp(0, 1) - 1
        torch.testing.assert_close(corrupted(2 * x - 1, "bright", severity), expected)
        mean = x.flatten(1).mean(1)[:, None, None, None]
        torch.testing.assert_close(corrupted(2 * x - 1, "low_contrast", severity), 2 * (mean + factor * (x - mean)) - 1)


@pytest.mark.parametrize("radius", [0.9, 1.8, 3.2])
def test_defocus_is_scipys_mean_over_a_disk(radius: float) -> None:
    x = shapes(3)
    fine = np.linspace(-4, 4, 8 * 40 + 1)[1::2] - 0.0  # 40 × 40 / 4 points a pixel, another grid than ours
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).astype(float)
    places = np.floor(fine + 0.5).astype(int) + 4
    disk = np.zeros((9, 9))
    np.add.at(disk, (places[:, None].repeat(len(fine), 1), places[None].repeat(len(fine), 0)), inside)
    expected = [scipy.ndimage.correlate(image[0].numpy(), disk / disk.sum(), mode="nearest") for image in x]
    np.testing.assert_allclose(defocus_blur(x, radius, draws(3))[:, 0], np.stack(expected), atol=0.02)


def test_motion_is_the_mean_along_a_line_of_the_drawn_direction() -> None:
    x = shapes(4)
    angles = draws(4).uniform(high=np.pi)
    found = motion_blur(x, 7.0, draws(4))
    for image, angle, blurred in zip(x, angles.tolist(), found, strict=True):
        steps = np.linspace(-3.5, 3.5, 33)
        rows, columns = np.mgrid[:28, :28]
        sampled = [
            scipy.ndimage.map_coordinates(
                image[0].numpy(), [rows - np.sin(angle) * s, columns + np.cos(angle) * s], order=1, mode="nearest"
            )
            for s in steps
        ]
        np.testing.assert_allclose(blurred[0, 4:-4, 4:-4], np.mean(sampled, axis=0)[4:-4, 4:-4], atol=1e-4)


def test_zoom_is_the_mean_of_enlarged_images() -> None:
    x = shapes(2)
    rows, columns = np.mgrid[:28, :28] - 13.5
    zoomed = [
        [
            scipy.ndimage.map_coordinates(image[0].numpy(), [rows / f + 13.5, columns / f + 13.5], order=1)
            for f in np.linspace(1, 1.6, 9)
        ]
        for image in x
    ]
    np.testing.assert_allclose(zoom_blur(x, 1.6, draws(2))[:, 0], np.mean(zoomed, axis=1), atol=1e-4)


def test_pixels_are_the_means_of_their_blocks() -> None:
    x = shapes(3, 28, 28)
    found = corrupted(x, "pixelate", 5)[:, 0]  # 28 pixels to 7 of 4
    blocks = x[:, 0].reshape(3, 7, 4, 7, 4).mean(dim=(2, 4))
    torch.testing.assert_close(found, blocks.repeat_interleave(4, 1).repeat_interleave(4, 2), atol=1e-5, rtol=0)


def test_jpeg_is_pillows() -> None:
    x = shapes(2)
    for image, found in zip(x, corrupted(x, "jpeg_compression", 3), strict=True):
        file = io.BytesIO()
        pixels = ((image[0] + 1) * 127.5).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=KINDS["jpeg_compression"].strengths[2])
        np.testing.assert_allclose(found[0], np.asarray(Image.open(file)) / 127.5 - 1, atol=1e-5)


def test_glass_takes_pixels_from_nearby_and_elastic_from_where_a_smooth_field_leads() -> None:
    """On an image of its own coordinates, so that each output pixel shows its source."""
    ramp = torch.linspace(0.2, 0.8, 28)
    across = ramp.expand(20, 1, 28, 28)
    step = float(ramp[1] - ramp[0])
    moved = {}
    for name, strength in (("glass_blur", (3.0, 1e-3)), ("elastic_transform", 2.0)):
        found = KINDS[name].function(across, strength, draws(20))
        moved[name] = ((found - across) / step)[:, 0, 4:-4, 4:-4]
    assert float(moved["glass_blur"].abs().max()) <= 3.01
    assert len(moved["glass_blur"].round().unique()) == 7  # -3 to 3
    assert float(moved["elastic_transform"].square().mean().sqrt()) == pytest.approx(2.0, rel=0.25)
    roughness = {
        name: float(shift.diff(dim=2).square().mean() / shift.square().mean()) for name, shift in moved.items()
    }
    assert roughness["elastic_transform"] < 0.2 < 1 < roughness["glass_blur"]


def test_weather_is_light() -> None:
    """Snow, frost and fog are bright overlays: dark pixels get lighter with the strength."""
    dark = torch.full((30, 1, 28, 28), -1.0)
    for name in ("snow", "frost", "fog"):
        light = [float((corrupted(dark, name, severity) > -0.5).float().mean()) for severity in SEVERITIES]
        assert light == sorted(light)
        assert light[-1] > 0.5


@pytest.mark.parametrize(
    ("amounts", "values", "message"),
    [
        ({"fog": 0}, (-1, 1), "fog has severities from 1 to 5, got 0"),
        ({"snow": 2.5}, (-1, 1), "snow has severities from 1 to 5, got 2.5"),
        ({"gausian_noise": 1}, (-1, 1), "did you mean 'gaussian_noise'"),
        ({"frost": 1}, (0, 255), "frost is for images with values from -1 to 1, got 0 to 255"),
        ({"frost": 1}, (-2.1, 2.6), "values from -1 to 1"),  # normalized by a mean and a deviation
        ({"frost": 1}, (float("nan"), 1), "values from -1 to 1, got nan"),
    ],
)
def test_a_mistake_is_told(amounts: dict[str, float], values: tuple[float, float], message: str) -> None:
    images: Any = torch.tensor(values).view(2, 1, 1, 1).expand(2, 1, 8, 8).clone()
    with pytest.raises(ValueError, match=message):
        Corruptions(amounts, 2)(images, torch.arange(2))


def test_five_channels_have_no_jpeg() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, got 5"):
        corrupted(shapes(2, channels=5), "jpeg_compression", 1)
