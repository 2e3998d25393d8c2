"""Errors of cross-iteration batch normalization's moments against the exact ones at the current weights."""

import copy
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from science.measures.evaluation import whole
from science.measures.training import fit
from science.runs import Setting
from syncbn.norm import CrossIterationBatchNorm
from syncbn.norm.core.moments import Moments, batch_moments, biased_var, pool
from syncbn.run import build
from syncbn.run.fit import test


class Used(NamedTuple):
    """Moments of a layer at one step: of its batch, and of the window without and with the Taylor step."""

    batch: Moments
    plain: Moments
    carried: Moments


class _Probe(CrossIterationBatchNorm):
    """Cross-iteration batch normalization that records the moments it uses."""

    used: Used

    def choose_moments(self, input: Tensor, mask: Tensor | None, group: Any) -> Moments:
        earlier = [slot.moments for slot in self._slots]
        chosen = super().choose_moments(input, mask, group)
        plain = batch = batch_moments(input.detach())
        for moments in earlier:
            plain = pool(plain, moments)
        self.used = Used(batch, plain, chosen)
        return chosen


class Errors(Callback):
    """Record, every `every` steps, the errors of each layer's moments against those of the whole training set."""

    def __init__(self, images: Tensor, every: int, first: int) -> None:
        self.images, self.every, self.first = images, every, first
        self.found: dict[str, list[Tensor]] = {}
        self._exact: dict[str, Moments] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        measures = step >= self.first and step % self.every == 0
        self._exact = exact_moments(pl_module.net, self.images) if measures else None  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._exact is None:
            return
        for path, layer in _probes(pl_module.net):  # type: ignore[arg-type]
            for name, moments in layer.used._asdict().items():
                self.found.setdefault(name, []).append(error(moments, self._exact[path]))


def error(moments: Moments, exact: Moments) -> Tensor:
    """Mean over channels of |mean - exact mean| / σ + |σ' / σ - 1|, with σ² the exact variance."""
    sigma = biased_var(exact).clamp(min=1e-12).sqrt()
    shift = (moments.mean.detach() - exact.mean).abs() / sigma
    scale = (biased_var(moments).detach().clamp(min=0).sqrt() / sigma - 1).abs()
    return (shift + scale).mean()


@torch.no_grad()
def exact_moments(net: nn.Module, images: Tensor) -> dict[str, Moments]:
    """Moments of each layer's input when the network normalizes `images` as one batch."""
    found: dict[str, Moments] = {}
    twin = copy.deepcopy(net).train()
    for path, layer in _probes(twin):
        layer.clear_window()
        layer.burn_in = layer._iterations + 1  # plain batch normalization from here on

        def keep(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
            found[path] = batch_moments(args[0])

        layer.register_forward_pre_hook(keep)
    twin(images)
    return found


def statistics(setting: Setting) -> dict[str, float]:
    """Measure errors after `first` steps of training, every `every`, averaged over layers and steps.

    - `batch`: of the current batch's moments.
    - `plain`: of the window's moments, uncorrected.
    - `carried`: of the window's moments, corrected to the current weights, as the layer uses them.
    """
    images, _ = whole(build.build_data(setting.config), "train")
    errors = Errors(images, int(setting.options["every"]), int(setting.options["first"]))
    fitted = fit(setting.config, setting.world, [errors], change=_probe)
    found = {name: float(torch.stack(values).mean()) for name, values in errors.found.items()}
    return {**found, **test(fitted)}


def _probe(net: nn.Module) -> nn.Module:
    for layer in net.modules():
        if isinstance(layer, CrossIterationBatchNorm):
            layer.__class__ = _Probe
    return net


def _probes(net: nn.Module) -> list[tuple[str, _Probe]]:
    return [(path, layer) for path, layer in net.named_modules() if isinstance(layer, _Probe)]
