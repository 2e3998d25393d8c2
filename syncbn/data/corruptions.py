"""Corruptions that make a shifted domain: contrast, brightness, blur, noise, inversion and more. Without Lightning."""

import math
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syncbn.data import common_corruptions
from syncbn.data.common_corruptions import SEVERITIES
from syncbn.norm.core.options import suggest


def contrast(images: Tensor, factor: float) -> Tensor:
    """Scale the contrast about zero: x·factor."""
    return images * factor


def brightness(images: Tensor, shift: float) -> Tensor:
    """Shift the brightness: x + shift."""
    return images + shift


def inversion(images: Tensor, amount: float) -> Tensor:
    """Blend with the negative, (1 - amount)·x + amount·(-x), of images around zero."""
    return images * (1 - 2 * amount)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with sigma in pixels and replicated borders."""
    if sigma == 0:
        return images
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    flat = images.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.pad(flat, [radius, radius, 0, 0], mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, [0, 0, radius, radius], mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat.view(images.shape)


def rotation(images: Tensor, degrees: float) -> Tensor:
    """Rotate counterclockwise about the center, with bilinear interpolation and replicated borders."""
    angle = math.radians(degrees)
    height, width = images.shape[2:]
    turn = [
        [math.cos(angle), -math.sin(angle) * height / width, 0.0],
        [math.sin(angle) * width / height, math.cos(angle), 0.0],
    ]
    theta = torch.tensor(turn, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


_FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "contrast": contrast,
    "brightness": brightness,
    "inversion": inversion,
    "blur": blur,
    "rotation": rotation,
}
CORRUPTIONS = (*_FUNCTIONS, "noise", *common_corruptions.KINDS)


class Corruptions:
    """Corruptions, applied in order. Random numbers are a function of (seed, index).

    By amount, in the unit of the images, unclipped:

    - contrast: a factor; brightness: a shift; together x·factor + shift.
    - inversion: from 0, the image, to 1, its negative.
    - blur: sigma of a Gaussian, in pixels.
    - rotation: degrees, counterclockwise.
    - noise: the standard deviation of Gaussian noise.

    By severity from 1 to 5, for images with values from -1 to 1, which stay in this range: the fifteen corruptions of
    Hendrycks and Dietterich (2019), as named in `syncbn.data.common_corruptions`. Their brightness and contrast are
    called bright and low_contrast here.

    Args:
        amounts: the amount or severity of each corruption, by name.
        num_samples: size of the data set that indices point into.
        seed: seed of the random draws.

    Raises:
        ValueError: an unknown corruption, a negative amount of blur or noise, an unknown severity, or, for corruptions
            by severity, values outside [-1, 1].
    """

    def __init__(self, amounts: Mapping[str, float], num_samples: int, seed: int = 0) -> None:
        for name, amount in amounts.items():
            if name not in CORRUPTIONS:
                raise ValueError(f"unknown corruption {name!r}; {suggest(name, CORRUPTIONS)}")
            if name in ("blur", "noise") and amount < 0:
                raise ValueError(f"{name} must be at least 0, got {amount}")
            if name in common_corruptions.KINDS and amount not in SEVERITIES:
                raise ValueError(f"{name} has severities from 1 to 5, got {amount}")
        self.amounts = dict(amounts)
        self.num_samples = num_samples
        self.seed = seed
        self._noise: Tensor | None = None

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Corrupt images (N, C, H, W) of a floating dtype, which have the data set indices `indices` (N)."""
        if len(images) == 0:
            return images
        for name, amount in self.amounts.items():
            if name == "noise":
                images = images + amount * self._noise_like(images)[indices].to(images)
            elif name in common_corruptions.KINDS:
                images = self._common(images, indices, name, int(amount))
            else:
                images = _FUNCTIONS[name](images, amount)
        return images

    def _common(self, images: Tensor, indices: Tensor, name: str, severity: int) -> Tensor:
        low, high = float(images.min()), float(images.max())
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"{name} is for images with values from -1 to 1, got {low:g} to {high:g}")
        kind = zlib.crc32(name.encode())  # independent draws for each kind
        generators = [np.random.default_rng([self.seed, kind, index]) for index in indices.tolist()]
        return 2 * common_corruptions.corrupt((images + 1) / 2, name, severity, generators) - 1

    def _noise_like(self, images: Tensor) -> Tensor:
        """Noise for the whole data set, drawn once; a batch looks up its rows."""
        if self._noise is None:
            generator = torch.Generator().manual_seed(self.seed)
            self._noise = torch.randn(self.num_samples, *images.shape[1:], generator=generator)
        return self._noise
