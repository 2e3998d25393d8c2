"""The fifteen common corruptions of Hendrycks and Dietterich, each at five severities. Imports only torch and numpy.

Written from the descriptions in "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, https://arxiv.org/abs/1903.12261, for grey or color images of any size. The strengths are our own, for images of
28 to 32 pixels: results compare with each other, not with those of CIFAR-10-C. Frost is a computed texture, where the
paper uses photographs of ice.

Each function takes images (N, C, H, W) with values from 0 to 1, a strength, and `Draws`. The draws are the same for
every strength, so the severities of one image differ only in strength.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Draws:
    """Random numbers for a batch. Each image has its own generator, so they don't depend on the rest of the batch."""

    def __init__(self, generators: Sequence[np.random.Generator], like: Tensor) -> None:
        self.generators = generators
        self.like = like

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers (N, *shape) from low to high."""
        return self._stacked(lambda generator: generator.uniform(low, high, shape))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (N, *shape)."""
        return self._stacked(lambda generator: generator.standard_normal(shape))

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson counts with means `rates` (N, *)."""
        every = zip(self.generators, rates.double().cpu().numpy(), strict=True)
        return torch.from_numpy(np.stack([generator.poisson(rate) for generator, rate in every])).to(self.like)

    def _stacked(self, draw: Callable[[np.random.Generator], Any]) -> Tensor:
        return torch.from_numpy(np.stack([draw(generator) for generator in self.generators])).to(self.like)


def gaussian_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    """Gaussian noise, as in low light, added to every value."""
    return x + deviation * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Photon noise: a Poisson count, with mean `photons` for white."""
    return draws.poisson(x * photons) / photons


def impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Salt and pepper: a share of the values is replaced, one half by 1 and the other by 0."""
    u = draws.uniform(*x.shape[1:])
    return torch.where(u < share / 2, 0.0, torch.where(u < share, 1.0, x))


def defocus_blur(x: Tensor, radius: float, draws: Draws) -> Tensor:
    """Defocus: the mean over a disk."""
    reach, fine = math.ceil(radius), 16  # a pixel's weight is the part of it that the disk covers, by 16 × 16 points
    points = (torch.arange((2 * reach + 1) * fine, dtype=torch.float64) + 0.5) / fine - reach - 0.5
    inside = (points.square()[:, None] + points.square() <= radius**2).double()
    disk = F.avg_pool2d(inside[None, None], fine)
    return _filtered(x, (disk / disk.sum()).to(x).expand(len(x), -1, -1, -1))


def glass_blur(x: Tensor, strength: tuple[float, float], draws: Draws) -> Tensor:
    """Frosted glass: pixels taken from random places at most `strength[0]` pixels away, then a blur."""
    reach, sigma = strength
    height, width = x.shape[2:]
    shifts = draws.uniform(height, width, 2, low=-1.0) * reach
    return _gaussian(_displaced(x, shifts.round()), sigma)


def motion_blur(x: Tensor, length: float, draws: Draws) -> Tensor:
    """Camera motion: the mean along a line of random direction."""
    return _filtered(x, _lines(length, draws.uniform(high=math.pi)))


def zoom_blur(x: Tensor, zoom: float, draws: Draws) -> Tensor:
    """Camera zoom: the mean over zooms from 1 to `zoom`."""
    factors = torch.linspace(1, zoom, 9).tolist()
    return torch.stack([_zoomed(x, factor) for factor in factors]).mean(dim=0)


def snow(x: Tensor, strength: tuple[float, float], draws: Draws) -> Tensor:
    """Snow: flakes with streaks downwards over a paler image; strength: share of flakes, paleness."""
    share, paleness = strength
    height, width = x.shape[2:]
    flakes = (draws.uniform(1, height, width) < share).to(x)
    falling = _lines(4.0, draws.uniform(low=math.pi / 3, high=2 * math.pi / 3))
    return (1 - paleness) * x + paleness + 2 * _filtered(flakes, falling)


def frost(x: Tensor, strength: float, draws: Draws) -> Tensor:
    """Ice on a window: bright ridges between patches, blended with the image by `strength`."""
    height, width = x.shape[2:]
    ridges = 1 - 2 * (_clouds(draws, height, width, roughness=0.8) - 0.5).abs()
    return (1 - 0.5 * strength) * x + strength * ridges.square()


def fog(x: Tensor, density: float, draws: Draws) -> Tensor:
    """Fog: light clouds over the whole image."""
    height, width = x.shape[2:]
    return (1 - density) * x + density * (0.4 + 0.6 * _clouds(draws, height, width, roughness=0.5))


def bright(x: Tensor, light: float, draws: Draws) -> Tensor:
    """The paper's "brightness": a shift towards white."""
    return x + light


def low_contrast(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """The paper's "contrast": values pulled towards the mean of the image."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (x - mean)


def elastic_transform(x: Tensor, amplitude: float, draws: Draws) -> Tensor:
    """Elastic deformation: pixels displaced by a smooth random field."""
    height, width = x.shape[2:]
    field = _gaussian(draws.normal(2, height, width), 2.5)
    field = field / field.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)
    return _displaced(x, amplitude * field.permute(0, 2, 3, 1))


def pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Low resolution: the image with `share` of its pixels per side, enlarged again."""
    small = [max(1, round(share * side)) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), list(x.shape[2:]), mode="nearest-exact")


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """JPEG at a low quality; needs Pillow."""
    from PIL import Image

    mode = {1: "L", 3: "RGB"}.get(x.shape[1])
    if mode is None:
        raise ValueError(f"jpeg_compression takes images of 1 or 3 channels, got {x.shape[1]}")
    found = []
    for image in (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if mode == "L" else image, mode).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            found.append(np.asarray(decoded).reshape(image.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).to(x) / 255


class Corruption(NamedTuple):
    """A corruption and its strengths at severities 1 to 5."""

    function: Callable[[Tensor, Any, Draws], Tensor]
    strengths: tuple[Any, Any, Any, Any, Any]


KINDS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.05, 0.10, 0.15, 0.20, 0.28)),
    "shot_noise": Corruption(shot_noise, (60, 30, 15, 8, 4)),
    "impulse_noise": Corruption(impulse_noise, (0.03, 0.06, 0.10, 0.16, 0.25)),
    "defocus_blur": Corruption(defocus_blur, (0.9, 1.3, 1.8, 2.4, 3.2)),
    "glass_blur": Corruption(glass_blur, ((1, 0.4), (1.5, 0.5), (2, 0.6), (2.5, 0.7), (3.5, 0.8))),
    "motion_blur": Corruption(motion_blur, (2.5, 4, 5.5, 7, 9)),
    "zoom_blur": Corruption(zoom_blur, (1.15, 1.25, 1.4, 1.6, 1.9)),
    "snow": Corruption(snow, ((0.03, 0.1), (0.05, 0.2), (0.08, 0.25), (0.11, 0.3), (0.15, 0.35))),
    "frost": Corruption(frost, (0.2, 0.35, 0.5, 0.65, 0.8)),
    "fog": Corruption(fog, (0.2, 0.35, 0.5, 0.62, 0.74)),
    "bright": Corruption(bright, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "low_contrast": Corruption(low_contrast, (0.75, 0.5, 0.35, 0.22, 0.12)),
    "elastic_transform": Corruption(elastic_transform, (0.5, 0.9, 1.3, 1.8, 2.4)),
    "pixelate": Corruption(pixelate, (0.75, 0.6, 0.45, 0.35, 0.25)),
    "jpeg_compression": Corruption(jpeg_compression, (40, 25, 15, 8, 3)),
}
SEVERITIES = range(1, 6)


def corrupt(images: Tensor, name: str, severity: int, generators: Sequence[np.random.Generator]) -> Tensor:
    """Corrupt images (N, C, H, W) with values from 0 to 1; keeps range, dtype and device."""
    x = images if images.dtype == torch.float64 else images.float()
    function, strengths = KINDS[name]
    return function(x, strengths[severity - 1], Draws(generators, x)).clamp(0, 1).to(images.dtype)


def _lines(length: float, angles: Tensor) -> Tensor:
    """Line kernels (N, 1, K, K) through the center, counterclockwise from the right; each sums to 1."""
    reach = math.ceil(length / 2)
    along = torch.linspace(-length / 2, length / 2, 8 * reach + 1).to(angles)
    across, down = torch.cos(angles)[:, None] * along, -torch.sin(angles)[:, None] * along
    places = torch.arange(-reach, reach + 1).to(angles)
    near_x = (1 - (across[:, :, None] - places).abs()).clamp(min=0)  # a point's weight in the columns beside it
    near_y = (1 - (down[:, :, None] - places).abs()).clamp(min=0)
    lines = torch.einsum("npy,npx->nyx", near_y, near_x)
    return (lines / lines.sum(dim=(1, 2), keepdim=True)).unsqueeze(1)


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each image with its own kernel (N, 1, K, K), with replicated borders."""
    reach = kernels.shape[-1] // 2
    padded = F.pad(x, [reach] * 4, mode="replicate").flatten(0, 1).unsqueeze(0)
    weights = kernels.expand(-1, x.shape[1], -1, -1).reshape(-1, 1, *kernels.shape[2:])
    return F.conv2d(padded, weights, groups=len(weights)).view(x.shape)


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    places = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1).to(x)
    bell = torch.exp(-0.5 * (places / sigma).square())
    kernel = bell[:, None] * bell
    return _filtered(x, (kernel / kernel.sum()).expand(len(x), 1, -1, -1))


def _displaced(x: Tensor, shifts: Tensor) -> Tensor:
    """Take each pixel from `shifts` (N, H, W, 2) pixels to the right and down, with replicated borders."""
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height).to(x), torch.arange(width).to(x), indexing="ij")
    places = torch.stack([columns, rows], dim=-1) + shifts
    grid = (2 * places + 1) / torch.tensor([width, height]).to(x) - 1
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _zoomed(x: Tensor, factor: float) -> Tensor:
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]]).to(x).expand(len(x), 2, 3)
    return F.grid_sample(
        x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="border", align_corners=False
    )


def _clouds(draws: Draws, height: int, width: int, roughness: float) -> Tensor:
    """Fractal noise (N, 1, H, W) from 0 to 1: random grids, each twice as fine and `roughness` times as strong."""
    total: Tensor | None = None
    for octave in range(max(1, math.ceil(math.log2(max(height, width))))):
        cells = 2**octave + 1
        grid = F.interpolate(draws.uniform(1, cells, cells), (height, width), mode="bilinear", align_corners=True)
        total = roughness**octave * grid if total is None else total + roughness**octave * grid
    assert total is not None
    low, high = total.amin(dim=(2, 3), keepdim=True), total.amax(dim=(2, 3), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-6)
