"""Which parameters decay."""

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: the optimizer's weight decay, and none for biases and norm parameters.

    Biases and the scales and shifts of norms are what has at most one dimension. Decay there doesn't shrink the
    function: a norm undoes the size of the weights before it, and its own scale is meant to be free.

    Source: He et al., Bag of Tricks for Image Classification, CVPR 2019, https://arxiv.org/abs/1812.01187, section 3.1.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter has requires_grad=True; unfreeze some of the network before training it")
    decay = [p for p in trainable if p.dim() > 1]
    no_decay = [p for p in trainable if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
