"""Parameter groups for weight decay."""

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Split the trainable parameters into two groups: with weight decay, and without for biases and norm parameters.

    Biases and norms' scales and shifts are recognized by having at most one dimension. Decay there doesn't regularize
    the function: a norm cancels the scale of the preceding weights, and its own scale should be free.

    Source: He et al., Bag of Tricks for Image Classification, CVPR 2019, https://arxiv.org/abs/1812.01187, section 3.1.

    Raises:
        ValueError: there are no trainable parameters.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter has requires_grad=True; unfreeze some of the network before training it")
    decay = [p for p in trainable if p.dim() > 1]
    no_decay = [p for p in trainable if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
