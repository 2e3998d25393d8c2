"""Movement of the distribution of each layer's inputs while the layers before it learn."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from science.measures.evaluation import whole
from science.measures.training import fit
from science.runs import Setting
from syncbn.run import build
from syncbn.run.fit import test


class Movements(Callback):
    """Record after each epoch how far the mean of each linear layer's input has moved, in standard deviations."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.before: list[tuple[Tensor, Tensor]] = []
        self.found: list[Tensor] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = distributions(pl_module.net, self.images)  # type: ignore[arg-type]
        for (old_mean, old_std), (mean, _) in zip(self.before, now, strict=bool(self.before)):
            self.found.append(((mean - old_mean).abs() / old_std.clamp(min=1e-3)).mean())
        self.before = now


@torch.no_grad()
def distributions(net: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of the input features of each linear layer after the first, in evaluation."""
    found: list[tuple[Tensor, Tensor]] = []
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)][1:]
    handles = [
        linear.register_forward_pre_hook(lambda module, args: found.append((args[0].mean(0), args[0].std(0))))
        for linear in linears
    ]
    was_training = net.training
    net.eval()(images)
    net.train(was_training)
    for handle in handles:
        handle.remove()
    return found


def inputs(setting: Setting) -> dict[str, float]:
    """Measure `movement`, the mean over layers, features and epochs; and the test metrics."""
    images, _ = whole(build.build_data(setting.config), "val")
    movements = Movements(images)
    fitted = fit(setting.config, setting.world, [movements])
    return {"movement": float(torch.stack(movements.found).mean()), **test(fitted)}
