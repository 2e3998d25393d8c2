"""Samples of a trained generator against real images, by a classifier trained here."""

import functools
import json
from typing import Any

import matplotlib.image
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from science.measures.evaluation import accuracy, in_one_process, whole
from science.measures.training import fit
from science.runs import Setting
from syncbn.models.cnn import CNN
from syncbn.run import build
from syncbn.training.callbacks import sample_grids
from syncbn.training.tasks.gan_quality import CONFIDENT

_ROWS = 8
_LR = 2e-3


def samples(setting: Setting) -> dict[str, float]:
    """Compare as many samples of the averaged generator as there are test images, up to `count`, with these.

    The features are the last of a CNN that is trained once, with a seed of its own, on `images` training images for
    `epochs` epochs, for all runs of this process alike.

    - `frechet`: the Fréchet distance of normal distributions of the features.
    - `confident`: share of samples with a class probability of at least 0.9.
    - `rarest_class`: share of samples of the rarest class; 0 if one is never generated.
    - `classifier`: accuracy of the CNN on the test images.

    A grid of samples is the run's picture.
    """
    fitted = fit(setting.config, setting.world)
    count, images, epochs = (int(setting.options[name]) for name in ("count", "images", "epochs"))
    if setting.picture is not None:
        setting.picture.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(setting.picture, sample_grids.samples(fitted.task, _ROWS).numpy())
    config = OmegaConf.to_container(setting.config.data)
    assert isinstance(config, dict)
    judge, right = _classifier(json.dumps({**config, "small": images, "seed": 0}, sort_keys=True), epochs)
    real, _ = whole(fitted.data, "test", count)
    generator = torch.Generator().manual_seed(setting.config.seed)
    latent_size: Any = fitted.net.latent_size
    noise = torch.randn(len(real), latent_size, generator=generator)
    fitted.net.eval()
    with torch.no_grad():
        generated = torch.cat([fitted.net(part) for part in noise.split(500)])
    probabilities = torch.cat([judge(part).softmax(dim=1) for part in generated.split(500)])
    confidence, classes = probabilities.max(dim=1)
    shares = torch.bincount(classes, minlength=fitted.data.num_classes) / len(classes)
    return {
        "frechet": frechet(_features(judge, generated), _features(judge, real)),
        "confident": float((confidence >= CONFIDENT).float().mean()),
        "rarest_class": float(shares.min()),
        "classifier": right,
    }


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance |μa - μb|² + tr(Ca + Cb - 2·(Ca·Cb)^½) of the rows of two tensors (N, features).

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule, NeurIPS 2017,
    https://arxiv.org/abs/1706.08500, equation 6.
    """
    a, b = a.double(), b.double()
    of_a, of_b = torch.cov(a.T), torch.cov(b.T)
    # The eigenvalues of Ca·Cb are those of Ca^½·Cb·Ca^½, which is symmetric.
    values, vectors = torch.linalg.eigh(of_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    crossed = torch.linalg.eigvalsh(root @ of_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + of_a.trace() + of_b.trace() - 2 * crossed)


@torch.no_grad()
def _features(net: CNN, images: Tensor) -> Tensor:
    """Last features of a CNN."""
    kept: list[Tensor] = []
    hook = net.fc.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    for part in images.split(500):
        net(part)
    hook.remove()
    return torch.cat(kept)


@functools.lru_cache(maxsize=1)
def _classifier(data: str, epochs: int) -> tuple[CNN, float]:
    """CNN trained on a data module's training images, and its accuracy on the test images."""
    module: Any = in_one_process(build.build_data(OmegaConf.create({"data": json.loads(data)})), batch_size=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = CNN("batch", module.num_classes, module.in_channels)
        loader = module.train_dataloader()
        optimizer = torch.optim.AdamW(net.parameters(), lr=_LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=epochs * len(loader))
        for epoch in range(epochs):
            loader.batch_sampler.set_epoch(epoch)
            for images, labels in loader:
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    net.eval().requires_grad_(False)
    return net, accuracy(net, module.test_dataloader())
