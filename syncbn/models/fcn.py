"""Fully convolutional networks for dense prediction, over a ResNet."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from syncbn.models import resnet
from syncbn.models.common import Norm, check_sizes


class FCN(nn.Module):
    """FCN-8s: class scores of a ResNet's last three stages, added from coarse to fine, at the image's size.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes, H, W) logits. Each stage has a 1×1
    convolution to scores, which starts at 0. Scores are upsampled bilinearly to the next finer stage, and at the end to
    the image. Train and eval differ only in the norm layers.

    Args:
        backbone: a ResNet; its classifier is removed.
        num_classes: number of classes per pixel.

    Raises:
        ValueError: num_classes below 1, or, in the forward pass, an input of the wrong shape.
        TypeError: in the forward pass, an input of an integer dtype.

    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015,
    https://arxiv.org/abs/1411.4038, section 4.2.
    """

    head = "scores"  # reinitialized by `load_weights` for a different number of classes

    def __init__(self, backbone: resnet.ResNet, num_classes: int) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes)
        features = backbone.fc.in_features
        self.backbone = backbone
        self.backbone.fc = nn.Identity()  # type: ignore[assignment]
        self.scores = nn.ModuleList(nn.Conv2d(features // 2**i, num_classes, 1) for i in (2, 1, 0))
        for score in self.scores.parameters():
            nn.init.zeros_(score)

    def forward(self, x: Tensor) -> Tensor:
        _, fine, middle, coarse = self.backbone.stages(x)
        score_fine, score_middle, score_coarse = self.scores
        y = score_coarse(coarse)
        y = _enlarge(y, middle) + score_middle(middle)
        y = _enlarge(y, fine) + score_fine(fine)
        return _enlarge(y, x)


def fcn_resnet18(norm: Norm = "batch", num_classes: int = 21, **options: Any) -> FCN:
    """FCN on ResNet-18. `options` are those of `ResNet`, from in_channels on."""
    return FCN(resnet.resnet18(norm, **options), num_classes)


def fcn_resnet50(norm: Norm = "batch", num_classes: int = 21, **options: Any) -> FCN:
    """FCN on ResNet-50. `options` are those of `ResNet`, from in_channels on."""
    return FCN(resnet.resnet50(norm, **options), num_classes)


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
