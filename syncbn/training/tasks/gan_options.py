"""Options of a GAN's training."""

from dataclasses import dataclass
from typing import Literal

from syncbn.norm.core.options import Count, Natural, NotNegative, option

Loss = Literal["bce", "wgan_gp"]


@dataclass
class GANOptions:
    """Adversarial training of a generator and a discriminator, without labels."""

    loss: Loss = option(
        "bce",
        "wgan_gp: Wasserstein with a gradient penalty",
        refusal="unknown loss {value!r}; allowed: {allowed}",
    )
    penalty_weight: NotNegative = option(10.0, "weight of wgan_gp's penalty")
    discriminator_steps: Count = option(1, "batches for each step of the generator")
    quality_samples: Count = option(1000, "number of images that the test generates")
    quality_epochs: Count = option(30, "training epochs of the classifier that evaluates them")
    seed: Natural = option(0, "seed of the noise")
    joint_batches: bool = option(False, "whether real and generated images are one batch for the discriminator's step")


OPTIONS = {"GANTask": GANOptions}
