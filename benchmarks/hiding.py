"""What hides the backward messages of a network: the weight gradients of the layers after each norm."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from syncbn.models.resnet import resnet50
from syncbn.norm.core.attachable import FEEDERS
from syncbn.norm.core.compat import BatchNormBase


class Layer(NamedTuple):
    """A convolution or linear layer of one forward pass."""

    module: Any
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def multiplications(self) -> int:
        """Of its forward pass, and of each of its two gradients."""
        outputs = torch.Size(self.output_shape).numel()
        return outputs * self.module.weight[0].numel()


def layers_after_norms(images: int) -> list[list[Layer]]:
    """For each of ResNet-50's 53 norms, in the order of the forward pass, the layers until the next norm.

    The first list is of those before the first norm, behind which no message can hide.
    """
    after: list[list[Layer]] = [[]]

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, BatchNormBase):
            after.append([])
        elif isinstance(module, FEEDERS):
            after[-1].append(Layer(module, tuple(args[0].shape), tuple(output.shape)))

    with torch.device("meta"):
        model = resnet50()
        for module in model.modules():
            module.register_forward_hook(note)
        model(torch.empty(images, 3, 224, 224))
    return after


def shares(after: Sequence[Sequence[Layer]]) -> list[float]:
    """For each norm, the share of its layers in all multiplications of the network."""
    work = [sum(layer.multiplications for layer in layers) for layers in after]
    return [part / sum(work) for part in work[1:]]
