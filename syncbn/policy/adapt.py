"""Adaptation of a trained network to another domain, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from syncbn.norm.core import compat
from syncbn.norm.core.capabilities import normalizes_by_batch
from syncbn.norm.core.exchange import all_sum, communicating_group
from syncbn.norm.core.moments import mean_over_ranks
from syncbn.norm.core.options import suggest
from syncbn.norm.surgery.forward import modes_kept
from syncbn.norm.surgery.select import Globs, select_layers
from syncbn.policy.batches import device_of, in_step, unwrapped
from syncbn.policy.freeze import has_frozen_statistics
from syncbn.policy.recalibrate import recalibrate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def adapt(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    method: Literal["adabn", "batch", "tent"] = "adabn",
    max_batches: int | None = None,
    process_group: ProcessGroup | None = None,
    include: Globs = None,
    exclude: Globs = None,
    **options: Any,
) -> nn.Module:
    """Adapt the batch normalization layers of `model` to unlabeled data of another domain, in place.

    - "adabn": the running statistics become those of `batches`, by `recalibrate`. Evaluation is as usual.
    - "batch": from now on the layers normalize by the current batch, also in evaluation. No `batches` are needed.
    - "tent": as "batch", and `Tent` trains γ and β once over `batches` to minimize the predictions' entropy.

    After "batch" and "tent" running statistics are kept but not used; `use_running_statistics` reactivates them.
    Synchronized layers use the batches of all ranks, so all ranks must evaluate together.

    Args:
        model: any model with batch normalization layers of torch or of this package; for "tent" one that returns
            logits (N, classes, *).
        batches: inputs (N, ...), or tuples (inputs, ...); the same number on every rank.
        method: one of the above.
        max_batches: use the first ones only. All when None.
        process_group: the ranks that adapt together; the default group when None.
        include: globs of module names. All when None.
        exclude: globs of module names that aren't adapted.
        options: options of "tent": `lr` and `steps`.

    Returns:
        `model`.

    Raises:
        ValueError: an unknown method or option; no batches, or different numbers of them on the ranks; no layer to
            adapt; for "batch" and "tent", a layer that doesn't normalize only by its batch (such as batch
            renormalization, cross-iteration and ghost batch norm).
        TypeError: a batch that isn't a tensor or a tuple that begins with one.

    Source:
        Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016,
        https://arxiv.org/abs/1603.04779 ("adabn"); Nado et al., Evaluating Prediction-Time Batch Normalization, 2020,
        https://arxiv.org/abs/2006.10963 ("batch"); Wang et al., Tent, ICLR 2021, https://arxiv.org/abs/2006.10726.
    """
    if method not in ("adabn", "batch", "tent"):
        raise ValueError(f"unknown method {method!r}; {suggest(str(method), ('adabn', 'batch', 'tent'))}")
    allowed = ("lr", "steps") if method == "tent" else ()
    for option in options:
        if option not in allowed:
            raise ValueError(f"method {method!r} has no option {option!r}; {suggest(option, allowed)}")
    if batches is None and method != "batch":
        raise ValueError(f"method {method!r} needs batches of the new domain")
    if method == "batch":
        return use_batch_statistics(model, include=include, exclude=exclude)
    assert batches is not None
    if method == "adabn":
        return recalibrate(
            model, batches, max_batches=max_batches, process_group=process_group, include=include, exclude=exclude
        )
    tent = Tent(model, process_group=process_group, include=include, exclude=exclude, **options)
    group = communicating_group(process_group)
    for inputs in in_step(batches, max_batches, device_of(model), group):
        tent(inputs)
    return model


class Tent:
    """Test-time entropy minimization: predicts each batch and trains γ and β on it.

    Calling it with inputs (N, ...) returns the model's logits (N, classes, *), normalized by batch statistics, and then
    takes `steps` Adam steps on the mean entropy H = -Σ_k p_k·log p_k of the predictions p. Everything but the norms is
    in eval mode, and no other parameters change. Entropy and gradients are those of all ranks' samples, so ranks stay
    equal; all ranks must make the same number of calls.

    Args:
        model: changed in place: it normalizes by batch statistics from then on (`use_running_statistics` undoes it).
        lr: learning rate of Adam; greater than 0.
        steps: steps for each batch; at least 1.
        episodic: start each batch from the original γ and β.
        process_group: the ranks that adapt together; the default group when None.
        include: globs of module names to adapt. All when None.
        exclude: globs of module names that aren't adapted.

    Raises:
        ValueError: lr or steps out of range; no trainable γ or β.

    Source: Wang et al., Tent, ICLR 2021, https://arxiv.org/abs/2006.10726.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
        process_group: ProcessGroup | None = None,
        include: Globs = None,
        exclude: Globs = None,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be greater than 0, got {lr}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        layers = _layers(model, include, exclude)
        self.parameters = [p for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad]
        if not self.parameters:
            raise ValueError("no layer has a trainable γ or β to adapt: syncbn.unfreeze them, or take method='batch'")
        self.model = use_batch_statistics(model, include=include, exclude=exclude)
        self.lr, self.steps, self.episodic = lr, steps, episodic
        self.process_group = process_group
        self._original = [p.detach().clone() for p in self.parameters]
        self.reset()

    def reset(self) -> None:
        """Restore the original γ and β, and reset the optimizer."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self._original, strict=True):
                parameter.copy_(value)
        self._optimizer = torch.optim.Adam(self.parameters, self.lr)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Predict a batch, then train on it; returns the logits from before the training."""
        if self.episodic:
            self.reset()
        net, group = unwrapped(self.model), communicating_group(self.process_group)
        predicted: Tensor | None = None
        with modes_kept(self.model), torch.enable_grad():
            self.model.eval()
            for _ in range(self.steps):
                logits = net(inputs)
                predicted = logits.detach() if predicted is None else predicted
                loss = mean_over_ranks(_entropy(logits), self.process_group)
                grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
                for parameter, grad in zip(self.parameters, grads, strict=True):
                    if grad is not None:
                        parameter.grad = all_sum(grad, group) / (1 if group is None else group.size())
                self._optimizer.step()
                self._optimizer.zero_grad()
        assert predicted is not None
        return predicted


def use_batch_statistics(model: nn.Module, *, include: Globs = None, exclude: Globs = None) -> nn.Module:
    """Make batch normalization layers normalize by the batch in evaluation too, in place.

    Running statistics are neither used nor updated in any mode; they stay in `state_dict`. A synchronized layer uses
    the batches of all ranks. Layers frozen by `freeze` aren't changed.

    Raises:
        ValueError: a glob that matches no layer; no layer to change.
    """
    for layer in _layers(model, include, exclude):
        if _find(layer) is None:
            _BatchStatistics(layer)
    return model


def use_running_statistics(model: nn.Module) -> nn.Module:
    """Undo `use_batch_statistics`, in place."""
    for layer in model.modules():
        if (hook := _find(layer)) is not None:
            hook.remove()
    return model


class _BatchStatistics:
    """Pair of hooks that run a layer in training mode without tracking statistics."""

    def __init__(self, layer: nn.Module) -> None:
        self._kept: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self.before_forward),
            layer.register_forward_hook(self.after_forward, always_call=True),
        ]

    def before_forward(self, layer: nn.Module, args: Any) -> None:
        names = ("training", "running_mean", "running_var", "num_batches_tracked")
        self._kept = {name: getattr(layer, name) for name in names}
        for name in names:
            setattr(layer, name, True if name == "training" else None)

    def after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:
        for name, value in self._kept.items():
            setattr(layer, name, value)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _find(layer: nn.Module) -> _BatchStatistics | None:
    owners = (getattr(hook, "__self__", None) for hook in compat.forward_pre_hooks(layer))
    return next((owner for owner in owners if isinstance(owner, _BatchStatistics)), None)


def _layers(model: nn.Module, include: Globs, exclude: Globs) -> list[nn.Module]:
    layers = select_layers(model, _can_adapt, include, exclude)
    moving = [(path, layer) for path, layer in layers if not has_frozen_statistics(layer)]
    if not moving:
        raise ValueError("the model has no batch normalization layer to adapt, or all of them are frozen")
    for path, layer in moving:
        if not normalizes_by_batch(layer):
            raise ValueError(
                f"{path or 'the layer'} is a {type(layer).__name__}, which doesn't normalize by its batch alone: leave "
                'it out with exclude=, take method="adabn", or syncbn.convert(model, "sync") first'
            )
    return [layer for _, layer in moving]


def _can_adapt(module: nn.Module) -> bool:
    return isinstance(module, compat.BatchNormBase)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
