"""Augmentations as functions of (seed, epoch, index): the same on any number of ranks and after a restart."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class RandomAffine:
    """Random shift, rotation and scale of each image, uniform within ± the limits, with bilinear interpolation.

    Args:
        num_samples: size of the data set that indices point into.
        max_shift: largest shift in pixels, along each axis.
        max_rotation: largest rotation in degrees.
        max_scale: largest relative change of size: 0.1 makes the content up to 10 % larger or smaller.
        seed: seed of the random draws.
        fill: value of pixels from outside the image.
    """

    def __init__(
        self, num_samples: int, max_shift: float, max_rotation: float, max_scale: float, seed: int, fill: float
    ) -> None:
        self.num_samples = num_samples
        self.limits = torch.tensor([max_shift, max_shift, math.radians(max_rotation), max_scale])
        self.seed = seed
        self.fill = fill

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Augment images (N, C, H, W) float32, which have the data set indices `indices` (N), for this epoch."""
        if len(images) == 0:
            return images
        height, width = images.shape[2:]
        draws = _uniform((self.num_samples, len(self.limits)), self.seed, epoch)[indices]
        right, down, angle, growth = (draws * self.limits).unbind(dim=1)
        # Output position -> input position, in coordinates of -1 to 1 over the image (two units are `width` pixels).
        cos, sin = angle.cos() / (1 + growth), angle.sin() / (1 + growth)
        across = torch.stack([cos, -sin * height / width, -2 * right / width], dim=1)
        along = torch.stack([sin * width / height, cos, -2 * down / height], dim=1)
        grid = F.affine_grid(torch.stack([across, along], dim=1), list(images.shape), align_corners=False)
        return F.grid_sample(images - self.fill, grid, align_corners=False) + self.fill


@functools.lru_cache(maxsize=2)
def _uniform(shape: tuple[int, ...], seed: int, epoch: int) -> Tensor:
    """Draw from (-1, 1) for a whole epoch at once: looking up rows is much faster than one generator per sample."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).uniform(-1, 1, shape)).float()
