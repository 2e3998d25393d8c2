"""Images of another domain: paler, brighter, blurred, noisy, inverted, turned. Imports torch and nothing else."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from syncbn.norm.core.options import suggest


def contrast(images: Tensor, factor: float) -> Tensor:
    """x·factor, about zero."""
    return images * factor


def brightness(images: Tensor, shift: float) -> Tensor:
    """x + shift."""
    return images + shift


def inversion(images: Tensor, amount: float) -> Tensor:
    """(1 - amount)·x + amount·(-x): for images around zero, 1 is the negative and 0 the image."""
    return images * (1 - 2 * amount)


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur, sigma in pixels; the border is repeated outwards."""
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
    """Turned about the center, counterclockwise, by bilinear interpolation; the border is repeated outwards."""
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
CORRUPTIONS = (*_FUNCTIONS, "noise")


class Corruptions:
    """Applies corruptions to images, in order, each by an amount; noise is a function of (seed, index).

    - contrast: a factor; brightness: a shift; together x·factor + shift.
    - inversion: from 0, the image, to 1, its negative.
    - blur: sigma of a Gaussian, in pixels.
    - rotation: degrees, counterclockwise.
    - noise: the standard deviation of Gaussian noise.

    Args:
        amounts: the amount of each corruption, by name.
        num_samples: size of the data set that indices point into.
        seed: of the noise.

    Raises:
        ValueError: no such corruption, or a negative amount of blur or noise.
    """

    def __init__(self, amounts: Mapping[str, float], num_samples: int, seed: int = 0) -> None:
        for name, amount in amounts.items():
            if name not in CORRUPTIONS:
                raise ValueError(f"unknown corruption {name!r}; {suggest(name, CORRUPTIONS)}")
            if name in ("blur", "noise") and amount < 0:
                raise ValueError(f"{name} must be at least 0, got {amount}")
        self.amounts = dict(amounts)
        self.num_samples = num_samples
        self.seed = seed
        self._noise: Tensor | None = None

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Images (N, C, H, W) of a floating dtype, whose places in the data set are `indices` (N)."""
        if len(images) == 0:
            return images
        for name, amount in self.amounts.items():
            if name == "noise":
                images = images + amount * self._noise_like(images)[indices].to(images)
            else:
                images = _FUNCTIONS[name](images, amount)
        return images

    def _noise_like(self, images: Tensor) -> Tensor:
        """Noise for the whole data set, drawn once: a batch looks its rows up."""
        if self._noise is None:
            generator = torch.Generator().manual_seed(self.seed)
            self._noise = torch.randn(self.num_samples, *images.shape[1:], generator=generator)
        return self._noise
