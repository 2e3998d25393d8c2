"""DCGAN (Radford et al. 2016): a generator and a discriminator of strided convolutions, with any norm."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from syncbn.models.common import Norm, check_image_size, check_images, check_sizes
from syncbn.models.dcgan_options import DCGANOptions as Options
from syncbn.models.dcgan_options import NormAt
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import NormFactory, has_bias, norm_layer
from syncbn.norm.surgery.feeding import attach_norms


class Generator(nn.Module):
    """Noise (N, latent_size) -> images (N, out_channels, S, S) in [-1, 1], S = base_size·2^ups.

    A projection to base_size² positions, then transposed 4×4 convolutions of stride 2, each with a norm and a ReLU; the
    last has tanh instead, and a norm only where norm_at="everywhere".
    """

    def __init__(
        self, latent_size: int, out_channels: int, ups: int, base_size: int, width: int, norm: NormFactory, at: NormAt
    ) -> None:
        super().__init__()
        channels = [width * 2**i for i in reversed(range(ups))]
        inner, outer = _norms(norm, at)
        self.project = _Layer(nn.ConvTranspose2d, latent_size, channels[0], inner, kernel_size=base_size)
        self.up = nn.Sequential(
            *(
                _Layer(nn.ConvTranspose2d, a, b, inner, kernel_size=4, stride=2, padding=1)
                for a, b in pairwise(channels)
            )
        )
        self.image = _Layer(nn.ConvTranspose2d, channels[-1], out_channels, outer, kernel_size=4, stride=2, padding=1)

    def forward(self, noise: Tensor) -> Tensor:
        x = torch.relu(self.project(noise[:, :, None, None]))
        for layer in self.up:
            x = torch.relu(layer(x))
        return torch.tanh(self.image(x))


class Discriminator(nn.Module):
    """Images (N, in_channels, S, S) -> logits (N) of being real.

    4×4 convolutions of stride 2, each with a norm and a LeakyReLU of slope 0.2, and a last one over the whole map. The
    first and the last have a norm only where norm_at="everywhere".
    """

    def __init__(self, in_channels: int, downs: int, base_size: int, width: int, norm: NormFactory, at: NormAt) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(downs)]
        inner, outer = _norms(norm, at)
        self.in_channels = in_channels
        self.image_size = base_size * 2**downs
        self.image = _Layer(nn.Conv2d, in_channels, channels[0], outer, kernel_size=4, stride=2, padding=1)
        self.down = nn.Sequential(
            *(_Layer(nn.Conv2d, a, b, inner, kernel_size=4, stride=2, padding=1) for a, b in pairwise(channels))
        )
        self.judge = _Layer(nn.Conv2d, channels[-1], 1, outer, kernel_size=base_size)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels)
        # The last convolution would slide over a larger map, and give more logits than there are images.
        check_image_size(images, self.image_size)
        x = F.leaky_relu(self.image(images), 0.2)
        for layer in self.down:
            x = F.leaky_relu(layer(x), 0.2)
        return self.judge(x).flatten()


class DCGAN(nn.Module):
    """Generator, discriminator, and `average`, the generator's moving average, which makes the samples.

    Convolutions start normal with standard deviation 0.02, and have a bias only where no norm after them adds one.
    `average.update_parameters(generator)` updates the average, running statistics included; it isn't trained.

    Args:
        norm: a name of `syncbn.available_norms()`, or a function of the number of channels.
        in_channels: channels of the images.
        image_size: height and width in pixels: base_size·2, ·4, ·8, ...
        latent_size: size of the noise vector of an image.
        width: channels at the largest inner size; each halving of the size doubles them.
        base_size: height and width of the generator's first map; the paper's is 4.
        norm_at: which layers are normalized: "paper" (all but the generator's output and the discriminator's input and
            final layer), the same in the "generator" or the "discriminator" only, "everywhere" or "nowhere".
        average_decay: weight of `average` in an update, at least 0 and below 1.

    Raises:
        ValueError: an unknown norm or place, a size below 1, an image_size that isn't base_size·2, ·4, ..., or a decay
            out of range.

    Source: Radford et al., Unsupervised Representation Learning with DCGANs, ICLR 2016,
    https://arxiv.org/abs/1511.06434; the average: Yazıcı et al., ICLR 2019, https://arxiv.org/abs/1806.04498.
    """

    def __init__(
        self,
        norm: Norm = "batch",
        in_channels: int = 3,
        image_size: int | Sequence[int] = 64,
        latent_size: int = Options.latent_size,
        width: int = Options.width,
        base_size: int = Options.base_size,
        norm_at: NormAt = Options.norm_at,
        average_decay: float = Options.average_decay,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels)
        check_arguments(Options, locals())
        norm = norm_layer(norm)
        self.latent_size = latent_size
        doublings = _doublings(image_size, base_size)
        places: dict[NormAt, tuple[NormAt, NormAt]] = {
            "generator": ("paper", "nowhere"),
            "discriminator": ("nowhere", "paper"),
        }
        in_generator, in_discriminator = places.get(norm_at, (norm_at, norm_at))
        self.generator = Generator(latent_size, in_channels, doublings, base_size, width, norm, in_generator)
        self.discriminator = Discriminator(in_channels, doublings, base_size, width, norm, in_discriminator)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        attach_norms(self.generator)
        attach_norms(self.discriminator)
        average = get_ema_multi_avg_fn(average_decay)
        self.average = AveragedModel(self.generator, multi_avg_fn=average, use_buffers=True).requires_grad_(False)

    def forward(self, noise: Tensor) -> Tensor:
        """Generate images (N, in_channels, S, S) in [-1, 1] with the averaged generator from noise (N, latent_size)."""
        if noise.dim() != 2 or noise.shape[1] != self.latent_size:
            raise ValueError(
                f"expected noise (N, {self.latent_size}), got {tuple(noise.shape)}; "
                "a DCGAN is trained by GANTask (task=gan)"
            )
        return self.average(noise)


class _Layer(nn.Module):
    """A convolution or transposed convolution, and its norm."""

    def __init__(
        self,
        kind: type[nn.Conv2d | nn.ConvTranspose2d],
        in_channels: int,
        channels: int,
        norm: NormFactory,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.conv = kind(in_channels, channels, kernel_size, stride, padding, bias=not has_bias(norm, channels))
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def _norms(norm: NormFactory, at: NormAt) -> tuple[NormFactory, NormFactory]:
    """Norms of the inner layers, and of those next to images and logits."""
    none = norm_layer("none")
    return (none if at == "nowhere" else norm), (norm if at == "everywhere" else none)


def _doublings(image_size: int | Sequence[int], base_size: int) -> int:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = [base_size * 2**i for i in range(1, 9)]
    if height != width or height not in sizes:
        raise ValueError(
            f"image_size must be square, of {', '.join(map(str, sizes))} pixels (base_size·2, ·4, ...), "
            f"got {height}×{width}; set base_size, or resize the images"
        )
    return sizes.index(height) + 1
