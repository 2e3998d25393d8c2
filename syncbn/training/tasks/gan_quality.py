"""How good generated images are, by a classifier trained on the real ones."""

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

CONFIDENT = 0.9  # the probability from which on a generated image counts as clearly of a class


class GANQuality(nn.Module):
    """Compares generated images with real ones, in the features of a classifier trained for it, and counts classes.

    The Fréchet and the kernel distance are those of torchmetrics, over the classifier's last features in place of an
    Inception network's, so they can be compared with each other and not with published ones. Every rank trains the
    same classifier, on all training images, without touching the global random state.

    Args:
        data: with `train_dataloader()` of (images, labels), `num_classes`, `in_channels` and `batch_size`.
        device: to train and compare on.
        seed: of the classifier.
        epochs: of its training.
    """

    def __init__(self, data: Any, device: torch.device | str = "cpu", seed: int = 0, epochs: int = 30) -> None:
        super().__init__()
        self.num_classes = data.num_classes
        self.features = Features(train_classifier(data, device, seed, epochs))
        self.frechet = FrechetInceptionDistance(feature=self.features)
        with warnings.catch_warnings():  # of the memory that all samples' features take
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
        """Over all ranks' images.

        - `frechet`, `kernel`: the distances; 0 for equal distributions.
        - `confident`: share of the generated images that one class has a probability of at least 0.9 of.
        - `rarest_class`: share of generated images of the class with the fewest; 0 if one is never made.
        - `classifier_acc`: accuracy of the classifier on the real images, which the rest rests on.
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
    """The last features (N, num_features) of a classifier, in the form that torchmetrics asks for."""

    def __init__(self, classifier: ResNet) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.fc.in_features

    def forward(self, images: Tensor) -> Tensor:
        return global_average(self.classifier.stages(images)[-1])


def train_classifier(data: Any, device: torch.device | str, seed: int, epochs: int) -> ResNet:
    """A small ResNet, trained in this process alone on all training images of `data`, in eval mode, not trainable."""
    alone = copy.copy(data)
    alone.trainer = None  # so that its loader gives this process every image, not a rank's part
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
