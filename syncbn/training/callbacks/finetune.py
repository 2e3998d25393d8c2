"""Fine-tuning policies: which layers learn, and whether norms' statistics are updated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from syncbn.norm.core.arguments import check_arguments
from syncbn.policy import freeze, unfreeze
from syncbn.policy.freeze import has_frozen_statistics
from syncbn.policy.layers import buffers_of, has_statistics, is_norm
from syncbn.training.callbacks.finetune_options import FreezeNormOptions, GradualUnfreezingOptions, TrainOnlyOptions
from syncbn.training.callbacks.found import averages_weights


class FreezeNorm(L.Callback):
    """Freezes norms during a fit, by `syncbn.freeze`, and verifies at its end that they haven't changed.

    It freezes before the optimizer is created, so frozen γ and β aren't in its groups, and unfreezes after the fit.

    Args:
        stats: freeze running statistics.
        affine: freeze γ and β.
        include: globs of module names in the LightningModule, for example ["net.layer1.*"]; all when None.
        exclude: globs of module names to leave unchanged.

    Raises:
        MisconfigurationException: a glob that matches no norm, or a norm without running statistics to freeze.
        RuntimeError: at the end of the fit, a frozen buffer or parameter isn't bitwise equal to its start.
    """

    def __init__(
        self,
        stats: bool = FreezeNormOptions.stats,
        affine: bool = FreezeNormOptions.affine,
        include: Sequence[str] | None = FreezeNormOptions.include,
        exclude: Sequence[str] | None = FreezeNormOptions.exclude,
    ) -> None:
        self.stats, self.affine, self.include, self.exclude = stats, affine, include, exclude
        self._before: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the norms."""
        if stage == "fit":
            with _refusing():
                freeze(pl_module, stats=self.stats, affine=self.affine, include=self.include, exclude=self.exclude)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the frozen values, after a checkpoint has been loaded."""
        self._before = {name: tensor.detach().clone() for name, tensor in self._frozen(pl_module)}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the frozen values themselves where their average differs by rounding."""
        state = checkpoint["state_dict"]
        for name in self._before.keys() & state.keys():
            if _is_rounded(state[name], self._before[name], trainer):
                state[name] = self._before[name].to(state[name].device).clone()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the frozen values bitwise, after those that were averaged with themselves are put back."""
        for name, tensor in self._frozen(pl_module):
            if _is_rounded(tensor, self._before[name], trainer):
                tensor.data.copy_(self._before[name])
        moved = [name for name, tensor in self._frozen(pl_module) if not torch.equal(tensor, self._before[name])]
        if moved:
            raise RuntimeError(f"frozen by FreezeNorm, and changed during the fit: {', '.join(moved)}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Unfreeze the norms."""
        if stage == "fit":
            unfreeze(pl_module, stats=self.stats, affine=self.affine, include=self.include, exclude=self.exclude)

    def _frozen(self, pl_module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for path, layer in pl_module.named_modules():
            if is_norm(layer):
                tensors = buffers_of(layer) if has_frozen_statistics(layer) else {}
                tensors |= {name: p for name, p in layer.named_parameters(recurse=False) if not p.requires_grad}
                yield from ((f"{path}.{name}", tensor) for name, tensor in tensors.items())


class TrainOnly(L.Callback):
    """Trains only norms' γ and β, named layers, or both; all other parameters have no gradient and no optimizer group.

    Args:
        layers: globs of parameter names in the LightningModule, for example ["net.fc.*"].
        norms: also train γ and β of every norm.

    Raises:
        ValueError: nothing to train.
        MisconfigurationException: a glob that matches no parameter; no norm with γ and β.
    """

    def __init__(self, layers: Sequence[str] = (), norms: bool = TrainOnlyOptions.norms) -> None:
        if not layers and not norms:
            raise ValueError("nothing would be trained: name layers, or set norms=True")
        self.layers, self.norms = tuple(layers), norms
        self._was_trainable: list[nn.Parameter] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the other parameters, before the optimizer is created."""
        if stage != "fit":
            return
        with _refusing():
            chosen = {p for glob in self.layers for p in matching(pl_module, glob)}
        if self.norms:
            chosen |= {p for m in pl_module.modules() if is_norm(m) for p in m.parameters(recurse=False)}
        if not chosen:
            raise MisconfigurationException("nothing would be trained: no norm has γ or β, and no layers are named")
        self._was_trainable = [p for p in pl_module.parameters() if p.requires_grad]
        for parameter in self._was_trainable:
            parameter.requires_grad_(parameter in chosen)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore which parameters are trainable."""
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        self._was_trainable = []


class GradualUnfreezing(L.Callback):
    """Trains the first stage, then one more stage every n epochs; freezes statistics in the last epochs.

    Gradients of later stages are removed before the optimizer's step, which then doesn't change these parameters, by
    weight decay and momentum included. The optimizer has all parameters from the start, and DDP needs no option.

    Args:
        stages: globs of parameter names in the LightningModule, in order, for example ["net.fc.*", "net.layer4.*"].
            Parameters that match none of them are trained after the last.
        every_n_epochs: epochs between two stages.
        frozen_stats_epochs: number of last epochs in which running statistics are frozen.

    Raises:
        ValueError: a number out of range.
        MisconfigurationException: a glob that matches no parameter, or `frozen_stats_epochs` without max_epochs.

    Source: Howard & Ruder, Universal Language Model Fine-tuning, ACL 2018, https://arxiv.org/abs/1801.06146, section
    3.3.
    """

    def __init__(
        self,
        stages: Sequence[str],
        every_n_epochs: int = GradualUnfreezingOptions.every_n_epochs,
        frozen_stats_epochs: int = GradualUnfreezingOptions.frozen_stats_epochs,
    ) -> None:
        check_arguments(GradualUnfreezingOptions, locals())
        if not stages:
            raise ValueError("stages must name at least one")
        self.stages, self.every_n_epochs = tuple(stages), every_n_epochs
        self.frozen_stats_epochs = frozen_stats_epochs
        self._waiting: list[nn.Parameter] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that every stage exists."""
        with _refusing():
            for glob in self.stages:
                matching(pl_module, glob)
        if stage == "fit" and self.frozen_stats_epochs and not (trainer.max_epochs and trainer.max_epochs > 0):
            raise MisconfigurationException("frozen_stats_epochs counts from the end: give the trainer max_epochs")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the stage of a fit that resumes in the middle of an epoch, without that epoch's start."""
        self._take_in(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the next stage, and freeze statistics in the last epochs."""
        self._take_in(trainer, pl_module)

    def _take_in(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        turns = 1 + trainer.current_epoch // self.every_n_epochs
        begun = {p for glob in self.stages[:turns] for p in matching(pl_module, glob)}
        everything = turns > len(self.stages)
        self._waiting = [] if everything else [p for p in pl_module.parameters() if p not in begun]
        frozen_from = (trainer.max_epochs or 0) - self.frozen_stats_epochs
        last = self.frozen_stats_epochs and trainer.current_epoch >= frozen_from
        if last and any(map(has_statistics, pl_module.modules())):  # in each of them: a fit may resume there
            freeze(pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Remove the gradients of later stages."""
        for parameter in self._waiting:
            parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unfreeze statistics."""
        if self.frozen_stats_epochs:
            unfreeze(pl_module, affine=False)


def matching(module: nn.Module, glob: str) -> list[nn.Parameter]:
    """Parameters that a glob matches; `ValueError` if there are none."""
    named = list(module.named_parameters())
    found = [parameter for name, parameter in named if fnmatchcase(name, glob)]
    if not found:
        examples = ", ".join(name for name, _ in named[:4])
        raise ValueError(f"no parameter is named {glob!r}; there are {examples}, ...")
    return found


def _is_rounded(value: Tensor, exact: Tensor, trainer: L.Trainer) -> bool:
    """Whether a value differs from the exact one by no more than an average of it with itself, d·x + (1 - d)·x."""
    if not (value.is_floating_point() and averages_weights(trainer)):
        return False
    exact = exact.to(value.device)
    return not torch.equal(value, exact) and torch.allclose(value, exact, rtol=8 * torch.finfo(value.dtype).eps, atol=0)


@contextmanager
def _refusing() -> Iterator[None]:
    """Convert errors at the start of a fit to Lightning's type, which commands print in one line."""
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
