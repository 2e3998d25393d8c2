"""Change of the loss and its gradient along the gradient, when the training has come to a given loss."""

import copy
import math
import statistics
from collections import deque
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from science.measures.evaluation import accuracy, tested
from science.measures.training import fit
from science.runs import Setting

STEPS = (0.5, 1.0, 2.0, 4.0)  # multiples of the learning rate
SMOOTHED = 20  # batches over which the training loss is averaged


class Walk(NamedTuple):
    """Changes along a gradient.

    Attributes:
        variation: range of the loss.
        difference: largest ‖g' - g‖.
        turn: the same relative to ‖g‖.
    """

    variation: float
    difference: float
    turn: float


class Walks(Callback):
    """Walk along the gradients of `batches` batches as soon as the training loss is at most `level`; then stop."""

    def __init__(self, level: float, batches: int, lr: float) -> None:
        self.level, self.batches, self.lr = level, batches, lr
        self.found: list[Walk] = []
        self.steps = 0
        self._losses: deque[float] = deque(maxlen=SMOOTHED)
        self._reached = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._reached:
            return
        with torch.enable_grad():
            net: Any = pl_module.net
            images, labels = batch
            self.found.append(walk(net, images, labels, [self.lr * step for step in STEPS]))
        trainer.should_stop = len(self.found) >= self.batches

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(float(outputs["loss"]))
        if not self._reached:
            self.steps = trainer.global_step
            self._reached = len(self._losses) == SMOOTHED and statistics.fmean(self._losses) <= self.level


def walk(net: nn.Module, images: Tensor, labels: Tensor, lengths: list[float]) -> Walk:
    """Changes of the loss and of its gradient over x - η·g, for η in `lengths` and 0; `net` isn't changed.

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
        differences.append(_norm([a - b for a, b in zip(gradient_there, gradient, strict=True)]))
    found, difference = torch.stack(losses), float(torch.stack(differences).max())
    return Walk(float(found.max() - found.min()), difference, difference / float(_norm(gradient)))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()


def landscape(setting: Setting) -> dict[str, float]:
    """Measure the geometric means of `walk`'s results over `batches` batches, once the training loss is `level`.

    - `variation`, `difference`, `turn`: see `Walk`; NaN if the training never gets there.
    - `steps`: the training's steps until then.
    - `accuracy`: on the test images, at the end of the walks, while which the training goes on.
    """
    options = setting.options
    walks = Walks(float(options["level"]), int(options["batches"]), setting.config.optimizer.lr)
    fitted = fit(setting.config, setting.world, [walks])
    means = {name: _geometric([getattr(found, name) for found in walks.found]) for name in Walk._fields}
    net = fitted.net.eval()
    return {
        **means,
        "steps": float(walks.steps),
        "accuracy": accuracy(net, tested(setting.config, fitted.data.test_dataloader())),
    }


def _geometric(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values))) if values and min(values) > 0 else math.nan
