"""Quality of generated images, by a classifier trained on real ones."""

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from syncbn.models.common import global_average
from syncbn.models.resnet import ResNet, resnet18
from syncbn.norm import norm_layer

CONFIDENT = 0.9  # probability from which a generated image counts as clearly of a class


class GANQuality(nn.Module):
    """Compares generated with real images in a classifier's features, and counts classes.

    The Fréchet and the kernel distance are those of torchmetrics, over the classifier's last features instead of an
    Inception network's, so they are comparable with each other, but not with published ones. Every rank trains the
    same classifier, on all training images, without changing the global random state.

    Args:
        data: data module with `train_dataloader()` of (images, labels), `num_classes`, `in_channels` and `batch_size`.
        device: device to train and compare on.
        seed: seed of the classifier.
        epochs: epochs of its training.
    """

    def __init__(self, data: Any, device: torch.device | str = "cpu", seed: int = 0, epochs: int = 30) -> None:
        super().__init__()
        self.num_classes = data.num_classes
        self.features = Features(train_classifier(data, device, seed, epochs))
        self.frechet = FrechetInceptionDistance(feature=self.features)
        with warnings.catch_warnings():  # about the memory of all samples' features
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
            self.kernel = KernelInceptionDistance(feature=self.features, subsets=50)
        self.right, self.classes, self.confidences = CatMetric(), CatMetric(), CatMetric()
        self.to(device)

    @torch.no_grad()
    def add_real(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch of real images (N, C, H, W) and their labels (N)."""
        if len(images) == 0:
            return
        self.frechet.update(images, real=True)
        self.kernel.update(images, real=True)
        self.right.update((self.features.classifier(images).argmax(dim=1) == labels).float())

    @torch.no_grad()
    def add_generated(self, images: Tensor) -> None:
        """Add a batch of generated images (N, C, H, W)."""
        self.frechet.update(images, real=False)
        self.kernel.update(images, real=False)
        confidences, classes = self.features.classifier(images).softmax(dim=1).max(dim=1)
        self.classes.update(classes.float())
        self.confidences.update(confidences)

    def compute(self) -> dict[str, Tensor]:
        """Compute the metrics over all ranks' images.

        - `frechet`, `kernel`: distances; 0 for equal distributions.
        - `confident`: share of generated images with a class probability of at least 0.9.
        - `rarest_class`: share of generated images of the rarest class; 0 if one is never generated.
        - `classifier_acc`: accuracy of the classifier on the real images, which the other metrics depend on.
        """
        classes, right = _values(self.classes).long(), _values(self.right)
        self.kernel.subset_size = min(100, len(classes), len(right))
        shares = torch.bincount(classes, minlength=self.num_classes) / max(len(classes), 1)
        with torch.random.fork_rng(devices=[]):  # the kernel distance draws subsets
            torch.manual_seed(0)
            kernel, _ = self.kernel.compute()
        return {
            "frechet": self.frechet.compute(),
            "kernel": kernel,
            "confident": (_values(self.confidences) >= CONFIDENT).float().mean(),
            "rarest_class": shares.min(),
            "classifier_acc": right.mean(),
        }


class Features(nn.Module):
    """Last features (N, num_features) of a classifier, in the form that torchmetrics requires."""

    def __init__(self, classifier: ResNet) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.fc.in_features

    def forward(self, images: Tensor) -> Tensor:
        return global_average(self.classifier.stages(images)[-1])


def train_classifier(data: Any, device: torch.device | str, seed: int, epochs: int) -> ResNet:
    """Train a small ResNet in this process on all training images of `data`; returns it frozen, in eval mode."""
    alone = copy.copy(data)
    alone.trainer = None  # its loader then gives all images instead of a rank's part
    alone.batch_size = 32
    # Lightning tests in inference mode.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        options = {"num_classes": data.num_classes, "in_channels": data.in_channels, "stem": "cifar", "width": 16}
        net = resnet18(norm_layer("group", groups=8), **options).to(device)
        loader = alone.train_dataloader()
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(loader))
        for epoch in range(epochs):
            loader.batch_sampler.set_epoch(epoch)
            for images, labels in loader:
                loss = F.cross_entropy(net(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval().requires_grad_(False)


def _values(metric: CatMetric) -> Tensor:
    values = metric.compute()
    return values if isinstance(values, Tensor) else torch.empty(0)
