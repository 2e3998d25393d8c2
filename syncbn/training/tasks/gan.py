"""LightningModule for generative adversarial training."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from syncbn.models.dcgan import DCGAN
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.moments import mean_over_ranks
from syncbn.training.connected import connected
from syncbn.training.optim import parameter_groups
from syncbn.training.schedule import takes_total_steps
from syncbn.training.tasks.gan_options import GANOptions as Options
from syncbn.training.tasks.gan_options import Loss
from syncbn.training.tasks.gan_quality import GANQuality

DISCRIMINATOR, GENERATOR, PENALTY, TEST = range(4)  # uses of random numbers


class GANTask(L.LightningModule):
    """Trains the discriminator and the generator of a `DCGAN` in turn, on the images of batches (images, labels).

    "bce": the discriminator's logits D minimize softplus(-D(x)) + softplus(D(G(z))), the generator softplus(-D(G(z))).
    "wgan_gp": D(G(z)) - D(x) + w·(‖∇D(x̂)‖ - 1)² with x̂ uniformly between x and G(z), and -D(G(z)); the penalty
    differentiates the discriminator, including its norms, twice. Real and generated images are separate batches of the
    discriminator, so that batch statistics don't mix them.

    Optimization is manual. Under DDP, `syncbn.training.ddp` finds the parameters that a backward pass doesn't use (the
    other network's); losses weight ranks as in `ClassificationTask`. Noise is a function of the seed, the step and the
    row of the batch, for any number of ranks. The trainer's `global_step` counts both optimizers' steps.

    Logged per epoch: train/discriminator_loss, train/generator_loss, val/discriminator_loss. A test compares images of
    the averaged generator with the test set: see `GANQuality`.

    Args:
        net: the two networks.
        optimizer: function from parameter groups to an optimizer, called once for each network. The paper's is
            `partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))`.
        scheduler: function from (optimizer, total_steps=...) to a schedule of each optimizer, stepped with it; None for
            a constant learning rate.
        loss: "bce" or "wgan_gp".
        penalty_weight: weight w of the penalty.
        discriminator_steps: batches for each step of the generator; 1 for "bce", 5 in WGAN-GP's paper.
        quality_samples: number of images that a test generates.
        quality_epochs: training epochs of the classifier that evaluates them.
        seed: seed of the noise.
        joint_batches: whether the discriminator sees real and generated images as one batch, which matters for norms
            over the batch; the paper uses two batches.

    Raises:
        ValueError: an unknown loss, a number out of range, or a schedule that counts epochs.
        TypeError: a network of another type.

    Source: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; Radford et al. 2016,
    https://arxiv.org/abs/1511.06434; Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028.
    """

    def __init__(
        self,
        net: DCGAN,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        loss: Loss = Options.loss,
        penalty_weight: float = Options.penalty_weight,
        discriminator_steps: int = Options.discriminator_steps,
        quality_samples: int = Options.quality_samples,
        seed: int = Options.seed,
        joint_batches: bool = Options.joint_batches,
        quality_epochs: int = Options.quality_epochs,
    ) -> None:
        super().__init__()
        if joint_batches and loss == "wgan_gp":
            raise ValueError("joint_batches=True goes with loss='bce' alone: the penalty is of images between both")
        check_arguments(Options, locals())
        if scheduler is not None and not takes_total_steps(scheduler):
            raise ValueError(
                "a schedule of a GAN takes total_steps=, as cosine_with_warmup does: take that, or ~scheduler"
            )
        if not isinstance(net, DCGAN):
            raise TypeError(f"GANTask trains a DCGAN (model=dcgan), got {type(net).__name__}")
        self.automatic_optimization = False
        self.net = net
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss = loss
        self.penalty_weight = penalty_weight
        self.discriminator_steps = discriminator_steps
        self.quality_samples = quality_samples
        self.quality_epochs = quality_epochs
        self.seed = seed
        self.joint_batches = joint_batches
        self.example_input_array = torch.zeros(1, net.latent_size)
        self.losses: Any = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in ("discriminator", "generator", "validation")}
        )
        self.quality: GANQuality | None = None

    def forward(self, noise: Tensor) -> Tensor:
        """Generate images (N, C, H, W) in [-1, 1] with the averaged generator from noise (N, latent_size)."""
        return self.net(noise)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Do a step of the discriminator and, every `discriminator_steps` batches, one of the generator."""
        images, _ = batch
        optimizers: Any = self.optimizers()
        discriminator, generator = optimizers
        schedulers: Any = self.lr_schedulers()
        step = self.trainer.fit_loop.total_batch_idx

        with torch.no_grad():
            fakes = self.net.generator(self.noise(len(images), step, DISCRIMINATOR))
        self.toggle_optimizer(discriminator)
        self._minimize(self._discriminator_losses(images, fakes, step), discriminator, "discriminator")
        self.untoggle_optimizer(discriminator)
        if schedulers:
            schedulers[0].step()

        if (step + 1) % self.discriminator_steps == 0:
            self.toggle_optimizer(generator)
            logits = self.net.discriminator(self.net.generator(self.noise(len(images), step, GENERATOR)))
            losses = F.softplus(-logits) if self.loss == "bce" else -logits
            self._minimize(losses, generator, "generator")
            self.untoggle_optimizer(generator)
            self.net.average.update_parameters(self.net.generator)
            if schedulers:
                schedulers[1].step()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add to val/discriminator_loss, without the penalty: how well held-out images are told from samples."""
        images, _ = batch
        fakes = self.net(self.noise(len(images), batch_idx, TEST))
        losses = self._adversarial(self.net.discriminator(images), self.net.discriminator(fakes))
        self.losses["validation"].update(losses.float())
        self.log("val/discriminator_loss", self.losses["validation"], on_step=False, on_epoch=True)

    def on_test_start(self) -> None:
        """Train the classifier for the evaluation."""
        data: Any = connected(self.trainer).datamodule
        self.quality = GANQuality(data, self.device, self.seed, self.quality_epochs)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add real images to the comparison."""
        assert self.quality is not None, "on_test_start makes it"
        self.quality.add_real(*batch)

    def on_test_epoch_end(self) -> None:
        """Add this rank's part of the generated images, and log the comparison."""
        assert self.quality is not None, "on_test_start makes it"
        rank, world = self.trainer.global_rank, self.trainer.world_size
        count = self.quality_samples * (rank + 1) // world - self.quality_samples * rank // world
        for start in range(0, count, 256):
            noise = self.noise(min(256, count - start), start, TEST)
            self.quality.add_generated(self.net(noise))
        self.log_dict({f"test/{name}": value for name, value in self.quality.compute().items()}, sync_dist=True)
        self.quality = None  # its weights don't belong in a checkpoint

    def configure_optimizers(self) -> Any:
        """Make the optimizers of discriminator and generator, each with its schedule."""
        networks = (self.net.discriminator, self.net.generator)
        optimizers = [self.optimizer(parameter_groups(network)) for network in networks]
        if self.scheduler is None:
            return optimizers
        total_steps = int(self.trainer.estimated_stepping_batches)
        steps = (total_steps, max(1, total_steps // self.discriminator_steps))
        pairs = zip(optimizers, steps, strict=True)
        return optimizers, [self.scheduler(optimizer, total_steps=count) for optimizer, count in pairs]

    def noise(self, rows: int, step: int, purpose: int) -> Tensor:
        """Standard normal noise (rows, latent_size) of this rank: every world_size-th row, so that ranks share none."""
        generator = np.random.default_rng([self.seed, step, purpose])
        return self._own(lambda size: generator.standard_normal((size, self.net.latent_size)), rows)

    def _own(self, draw: Callable[[int], np.ndarray], rows: int) -> Tensor:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return torch.from_numpy(draw(rows * world)[rank::world]).to(next(self.net.parameters()))

    def _minimize(self, losses: Tensor, optimizer: Any, name: str) -> None:
        optimizer.zero_grad()
        self.manual_backward(mean_over_ranks(losses))
        optimizer.step()
        metric = self.losses[name]
        metric.update(losses.detach().float())
        self.log(f"train/{name}_loss", metric, on_step=False, on_epoch=True)

    def _discriminator_losses(self, images: Tensor, fakes: Tensor, step: int) -> Tensor:
        if self.joint_batches:
            real, fake = self.net.discriminator(torch.cat([images, fakes])).chunk(2)
        else:
            real, fake = self.net.discriminator(images), self.net.discriminator(fakes)
        losses = self._adversarial(real, fake)
        if self.loss == "bce":
            return losses
        generator = np.random.default_rng([self.seed, step, PENALTY])
        shares = self._own(lambda size: generator.random((size, 1, 1, 1)), len(images))
        between = torch.lerp(images, fakes, shares).requires_grad_()
        (slopes,) = torch.autograd.grad(self.net.discriminator(between).sum(), between, create_graph=True)
        return losses + self.penalty_weight * (slopes.flatten(1).norm(dim=1) - 1).square()

    def _adversarial(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real) + F.softplus(fake) if self.loss == "bce" else fake - real
