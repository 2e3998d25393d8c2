"""Scenes of handwritten digits with a label for each pixel, composed on demand."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syncbn.data.base import GlobalBatchDataModule, Part
from syncbn.data.digits import BACKGROUND, DigitsDataModule
from syncbn.data.scenes_options import ScenesOptions as Options
from syncbn.norm.core.arguments import check_arguments

INK = -0.25  # pixels from this value on belong to a digit; between the background's -1 and the stroke's 1
_PARTS: dict[Part, int] = {"train": 0, "val": 1, "test": 2}


class ScenesDataModule(GlobalBatchDataModule):
    """Images (N, 1, size, size) float32, about [-1, 1], and labels (N, size, size) int64: 0 background, 1 + d digit d.

    A scene has a few of scikit-learn's digits on a noisy grey gradient. Each has a random scale, place and contrast;
    later digits cover earlier ones. A pixel belongs to a digit where its ink is. The digits are split as in
    `DigitsDataModule`, so test scenes show digits that training doesn't.

    A training scene i is a function of (seed, epoch, i), so every epoch has new ones, on any number of ranks;
    a validation or test scene is one of (split_seed, i). The loaders are those of `GlobalBatchDataModule`.

    Args:
        batch_size: training scenes of one rank in a step.
        eval_batch_size: scenes of one rank in a validation or test step.
        seed: seed of the training scenes and their order.
        split_seed: seed of the digits' split and of the validation and test scenes.
        size: height and width in pixels.
        num_train: number of scenes in a training epoch.
        num_val: number of validation scenes.
        num_test: number of test scenes.
        max_digits: largest number of digits in a scene.
        max_scale: largest scale of the 8×8 digits; the smallest is 1.
        noise: standard deviation of the noise on each pixel.
        drop_last: leave out the last training batch of an epoch when it isn't full.

    Raises:
        ValueError: a number below 1, negative noise, or digits larger than the canvas.

    Source: the digits are those of `DigitsDataModule`; the task follows Long et al., CVPR 2015,
    https://arxiv.org/abs/1411.4038.
    """

    num_classes = 11
    in_channels = 1
    class_names = ("background", *"0123456789")

    def __init__(
        self,
        batch_size: int = Options.batch_size,
        eval_batch_size: int = Options.eval_batch_size,
        seed: int = Options.seed,
        split_seed: int = Options.split_seed,
        size: int = Options.size,
        num_train: int = Options.num_train,
        num_val: int = Options.num_val,
        num_test: int = Options.num_test,
        max_digits: int = Options.max_digits,
        max_scale: float = Options.max_scale,
        noise: float = Options.noise,
        drop_last: bool = Options.drop_last,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last)
        check_arguments(Options, locals())
        if max_scale > size / 8:
            raise ValueError(
                f"max_scale must be from 1 to {size / 8:g}, got {max_scale}: digits of 8 pixels, a canvas of {size}"
            )
        self.image_size = (size, size)
        self.split_seed = split_seed
        self.counts: dict[Part, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.max_digits = max_digits
        self.max_scale = max_scale
        self.noise = noise
        self.digits = DigitsDataModule(split_seed=split_seed, augment=False)

    def num_samples(self, part: Part) -> int:
        """Number of scenes in a part."""
        return self.counts[part]

    def fetch(self, part: Part, indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images (N, 1, size, size) and labels (N, size, size) of a part's scenes in an epoch."""
        seed = [self.seed, epoch] if part == "train" else [self.split_seed, 0]
        scenes = [self.scene(part, np.random.default_rng([*seed, _PARTS[part], index])) for index in indices]
        if not scenes:
            return torch.empty(0, 1, *self.image_size), torch.empty(0, *self.image_size, dtype=torch.long)
        images, labels = zip(*scenes, strict=True)
        return torch.stack(images), torch.stack(labels)

    def scene(self, part: Part, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Compose one image (1, size, size) and its labels (size, size) from digits of the part."""
        size = self.image_size[0]
        image = torch.full((size, size), BACKGROUND)
        labels = torch.zeros(size, size, dtype=torch.long)
        for _ in range(random.integers(1, self.max_digits + 1)):
            digit, label = self.digits.fetch(part, [int(random.integers(self.digits.num_samples(part)))], 0)
            side = round(8 * random.uniform(1, self.max_scale))
            digit = F.interpolate(digit, size=(side, side), mode="bilinear", align_corners=False)[0, 0]
            top, left = random.integers(0, size - side + 1, size=2)
            place = slice(top, top + side), slice(left, left + side)
            ink = digit > INK
            contrast = random.uniform(0.5, 1)
            faded = (digit - BACKGROUND) * contrast + BACKGROUND
            image[place] = torch.where(ink, faded, torch.maximum(image[place], faded))
            labels[place] = torch.where(ink, label + 1, labels[place])
        light, slope_down, slope_right = random.uniform(0, 0.4, size=3)
        ramp = torch.linspace(0, 1, size)
        image = image + light + slope_down * ramp[:, None] + slope_right * ramp
        image = image + self.noise * torch.from_numpy(random.standard_normal((size, size))).float()
        return image.unsqueeze(0), labels
