"""Augmentations that are functions of (seed, epoch, index), so that neither ranks nor a restart change them."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class RandomAffine:
    """Shifts, turns and scales each image, by an amount uniform within ±its limit, by bilinear interpolation.

    Args:
        num_samples: size of the data set that indices point into.
        max_shift: in pixels, each way.
        max_rotation: in degrees.
        max_scale: relative: 0.1 makes the content up to 10 % larger or smaller.
        seed: of the draws.
        fill: what comes in at the border.
    """

    def __init__(
        self, num_samples: int, max_shift: float, max_rotation: float, max_scale: float, seed: int, fill: float
    ) -> None:
        self.num_samples = num_samples
        self.limits = torch.tensor([max_shift, max_shift, math.radians(max_rotation), max_scale])
        self.seed = seed
        self.fill = fill

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Images (N, C, H, W) float32, whose places in the data set are `indices` (N), as this epoch sees them."""
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
    """(-1, 1) for a whole epoch at once: a batch looks its rows up, which is much faster than a generator a sample."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).uniform(-1, 1, shape)).float()
