"""Change of the loss and its gradient along the gradient step, during training."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from science.measures.training import fit
from science.runs import Setting
from syncbn.run.fit import test

STEPS = (0.5, 1.0, 2.0, 4.0)  # multiples of the learning rate


class Walks(Callback):
    """Record, every `every` steps, the loss and the gradient of the next batch along its own gradient."""

    def __init__(self, every: int, lr: float) -> None:
        self.every, self.lr = every, lr
        self.variations: list[float] = []
        self.differences: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every:
            return
        with torch.enable_grad():
            net: Any = pl_module.net
            images, labels = batch
            variation, difference = walk(net, images, labels, [self.lr * step for step in STEPS])
        self.variations.append(variation)
        self.differences.append(difference)


def walk(net: nn.Module, images: Tensor, labels: Tensor, lengths: list[float]) -> tuple[float, float]:
    """Range of the loss over x - η·g for η in `lengths` and 0, and largest ‖g(x - η·g) - g‖; `net` isn't changed.

    x are the weights and g = ∂loss/∂x. The norms use batch statistics, as in training.

    Source: Santurkar et al., How Does Batch Normalization Help Optimization?, NeurIPS 2018,
    https://arxiv.org/abs/1805.11604, section 3.2.
    """
    twin = copy.deepcopy(net).train()
    weights = list(twin.parameters())
    start = [weight.detach().clone() for weight in weights]

    def loss_and_gradient() -> tuple[Tensor, list[Tensor]]:
        loss = F.cross_entropy(twin(images), labels)
        return loss.detach(), list(torch.autograd.grad(loss, weights))

    loss, gradient = loss_and_gradient()
    losses, differences = [loss], []
    for length in lengths:
        with torch.no_grad():
            for weight, at, g in zip(weights, start, gradient, strict=True):
                weight.copy_(at - length * g)
        there, gradient_there = loss_and_gradient()
        losses.append(there)
        changes = [(a - b).square().sum() for a, b in zip(gradient_there, gradient, strict=True)]
        differences.append(torch.stack(changes).sum().sqrt())
    found = torch.stack(losses)
    return float(found.max() - found.min()), float(torch.stack(differences).max())


def landscape(setting: Setting) -> dict[str, float]:
    """Measure `variation` and `difference`, the medians over training of `walk`'s results; and the test metrics."""
    walks = Walks(int(setting.options["every"]), setting.config.optimizer.lr)
    fitted = fit(setting.config, setting.world, [walks])
    variation, difference = (torch.tensor(found).median() for found in (walks.variations, walks.differences))
    return {"variation": float(variation), "difference": float(difference), **test(fitted)}
