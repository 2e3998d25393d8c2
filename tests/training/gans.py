"""GAN trainings in one process or on every rank of a pool."""

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from syncbn.models.dcgan import DCGAN
from syncbn.training import GANTask
from tests.training import fits

ADAM = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))


class InRankOrder(GANTask):
    """One process whose rows of noise are those of rank 0 of 2, and then those of rank 1."""

    def _own(self, *args: Any) -> Tensor:
        rows = super()._own(*args)
        return torch.cat([rows[0::2], rows[1::2]])


def net(norm: str = "sync") -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(norm, in_channels=1, image_size=8, latent_size=4, width=4, base_size=2, average_decay=0.5)


def fit(kind: type[GANTask], batch_size: int, train: int, **options: Any) -> dict[str, Any]:
    """Fit for two epochs in float64; returns the networks' state and the losses."""
    with fits.launched():
        task = kind(net(), ADAM, **options)
        run = fits.trainer(max_epochs=2, precision="64-true")
        run.fit(task, fits.digits(train, batch_size=batch_size))
        return {"net": fits.state(task.net), "losses": {k: float(v) for k, v in run.callback_metrics.items()}}


def evaluate(samples: int) -> dict[str, float]:
    """Test metrics of an untrained generator."""
    with fits.launched():
        run = fits.trainer()
        metrics = run.test(GANTask(net(), ADAM, quality_samples=samples), fits.digits(96, 60), verbose=False)[0]
        return {name: float(value) for name, value in metrics.items()}


def plain_steps(batches: list[Tensor], noise: list[tuple[Tensor, Tensor]]) -> DCGAN:
    """The same training by hand: binary cross-entropy with labels, torch's own loop, an average by its formula."""
    networks = net().double()
    average = None
    optimizers = [ADAM(part.parameters()) for part in (networks.discriminator, networks.generator)]
    for images, (first, second) in zip(batches, noise, strict=True):
        ones, zeros = torch.ones(len(images), dtype=torch.float64), torch.zeros(len(images), dtype=torch.float64)
        fakes = networks.generator(first).detach()
        real = F.binary_cross_entropy_with_logits(networks.discriminator(images), ones)
        fake = F.binary_cross_entropy_with_logits(networks.discriminator(fakes), zeros)
        optimizers[0].zero_grad()
        (real + fake).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        F.binary_cross_entropy_with_logits(networks.discriminator(networks.generator(second)), ones).backward()
        optimizers[1].step()
        now = networks.generator.state_dict()
        average = copy.deepcopy(now) if average is None else {k: 0.5 * average[k] + 0.5 * now[k] for k in now}
    networks.average.module.load_state_dict(average)
    return networks
