"""Test-time entropy minimization (Wang et al. 2021): γ and β learned from the predictions of unlabeled batches."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.exchange import all_sum, communicating_group
from syncbn.norm.core.moments import mean_over_ranks
from syncbn.norm.surgery.forward import Forward, modes_kept
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.select import Globs, globs
from syncbn.policy.batch_statistics import adaptable_layers, batch_statistics_of, use_batch_statistics
from syncbn.policy.batches import call, unwrapped
from syncbn.policy.freeze import has_frozen_statistics
from syncbn.policy.layers import affine_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Tent:
    """Test-time entropy minimization: predicts each batch, and learns γ and β from it.

    Calling it with a batch returns the model's logits (N, classes, *), by the statistics of the batch, and then takes
    `steps` steps of Adam down the mean entropy H = -Σ_k p_k·log p_k of the predictions p. Everything but the norms is
    in eval mode, and other parameters don't move. γ and β in half precision are learned in float32 and rounded after
    each step. Across ranks, entropy and gradients are those of all ranks' samples, so that ranks stay equal; all of
    them must call it equally often.

    Args:
        model: changed in place: it normalizes by batch statistics from now on (`use_running_statistics` undoes it).
        lr: learning rate of Adam; greater than 0.
        steps: steps for each batch; at least 1.
        episodic: start each batch from the original γ and β.
        forward: how to call the model, `forward(model, batch)`.
        process_group: the ranks that adapt together; the default group when None.
        include: globs of module names to adapt. All when None.
        exclude: globs of module names that stay as they are.

    Raises:
        ValueError: lr or steps out of range; no trainable γ or β; when called, probabilities instead of logits, an
            entropy or a gradient that isn't finite, or a model that was frozen or told to use its running statistics
            since. γ and β are then as before the call.

    Source: Wang et al., Tent, ICLR 2021, https://arxiv.org/abs/2006.10726.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
        forward: Forward | None = None,
        process_group: ProcessGroup | None = None,
        include: Globs = None,
        exclude: Globs = None,
    ) -> None:
        check_given(locals(), required=("steps",))
        include, exclude = globs(include), globs(exclude)  # a generator is used up by the first selection
        if not lr > 0:
            raise ValueError(f"lr must be greater than 0, got {lr}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.layers = adaptable_layers(model, include, exclude)
        self.parameters = [p for layer in self.layers for p in affine_of(layer).values() if p.requires_grad]
        if not self.parameters:
            raise ValueError("no layer has a trainable γ or β to adapt: syncbn.unfreeze them, or take method='batch'")
        self.model = use_batch_statistics(model, include=include, exclude=exclude)
        self.lr, self.steps, self.episodic = lr, steps, episodic
        self.forward, self.process_group = forward, process_group
        self._unlearned = 0
        self._original = [p.detach().clone() for p in self.parameters]
        self.reset()

    def reset(self) -> None:
        """Go back to the original γ and β, and to an optimizer that has seen nothing."""
        with torch.inference_mode(False), torch.no_grad():
            for parameter, value in zip(self.parameters, self._original, strict=True):
                parameter.copy_(value)
            # A step of 1e-3 is below half precision's resolution of 1.
            self._masters = [
                p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self.parameters
            ]
            self._optimizer = torch.optim.Adam(self._masters, self.lr)

    def __call__(self, batch: Any) -> Tensor:
        """Logits of the batch, as they were before the model learned from it."""
        self._check()
        if self.episodic:
            self.reset()
        before = [p.detach().clone() for p in self.parameters]
        masters, optimizer = [m.clone() for m in self._masters], copy.deepcopy(self._optimizer.state_dict())
        predicted: Tensor | None = None
        try:
            with torch.inference_mode(False), modes_kept(self.model), torch.enable_grad():
                batch = compat.tree_map_only(Tensor, _usable, batch)
                self.model.eval()
                for _ in range(self.steps):
                    logits = call(unwrapped(self.model), batch, self.forward)
                    self._learn(logits)
                    predicted = logits.detach() if predicted is None else predicted
        except BaseException:
            self._optimizer.load_state_dict(optimizer)
            with torch.no_grad():
                for value, was in zip([*self.parameters, *self._masters], [*before, *masters], strict=True):
                    value.copy_(was)
            raise
        self._tell()
        assert predicted is not None
        return predicted

    def _tell(self) -> None:
        unlearned = sum(hook.ran_without_gradient for hook in map(batch_statistics_of, self.layers) if hook is not None)
        if unlearned > self._unlearned:
            self._unlearned = unlearned
            warnings.warn(
                f"γ and β of {unlearned} of {len(self.layers)} layers aren't learned, as the model runs them without "
                "gradients, in torch.no_grad() or a reentrant checkpoint: checkpoint with use_reentrant=False, or "
                "exclude= them",
                stacklevel=3,
            )

    def _check(self) -> None:
        for layer in self.layers:
            hook = batch_statistics_of(layer)
            if hook is None or has_frozen_statistics(layer):
                raise ValueError(
                    f"a {type(layer).__name__} of the model no longer normalizes by its batch (it was frozen, or "
                    "use_running_statistics was called): make a new Tent(model)"
                )
            hook.ran_without_gradient = False
        if not all(p.requires_grad for p in self.parameters):
            raise ValueError("γ and β no longer require a gradient: syncbn.unfreeze(model), or make a new Tent(model)")

    def _learn(self, logits: Tensor) -> None:
        group = communicating_group(self.process_group)
        loss = mean_over_ranks(_entropy(logits), self.process_group)
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self._masters, strict=True):
                if not torch.equal(master.to(parameter.dtype), parameter):  # loaded since the last step, say
                    master.copy_(parameter)
            grads = [None if g is None else g.to(m.dtype) for g, m in zip(found, self._masters, strict=True)]
            for master, grad in zip(self._masters, grads, strict=True):
                master.grad = None if grad is None else all_sum(grad, group) / (1 if group is None else group.size())
            # Sums over ranks are the same on every rank, so that all refuse alike.
            if not all(master.grad.isfinite().all() for master in self._masters if master.grad is not None):
                raise ValueError(
                    "the gradient of the predictions' entropy isn't finite: look for NaN in the batch and the "
                    "logits (a batch in half precision may overflow)"
                )
            self._optimizer.step()
            self._optimizer.zero_grad()
            for parameter, master in zip(self.parameters, self._masters, strict=True):
                parameter.copy_(master)
            if not all(parameter.isfinite().all() for parameter in self.parameters):
                raise ValueError(f"lr={self.lr} leads to γ or β that {self.parameters[0].dtype} can't hold; lower it")


def _usable(tensor: Tensor) -> Tensor:
    """A tensor of the caller's inference mode, which autograd refuses, as another one."""
    return tensor.clone() if tensor.is_inference() else tensor


def _entropy(logits: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise ValueError(
            f"entropy is that of logits (N, classes, *), got {_shape(logits)}; take them from the model's output with "
            "forward=lambda model, batch: ..."
        )
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits of a shape {tuple(logits.shape)} have one class, whose entropy is 0; of a binary classifier's x, "
            "give forward=lambda model, batch: nn.functional.pad(model(batch), (0, 1)), which are logits of two"
        )
    if _are_probabilities(logits):
        raise ValueError(
            "the model returns probabilities, which add up to 1, instead of logits: give forward=lambda model, batch: "
            "model(batch).clamp(min=1e-30).log()"
        )
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


@torch.no_grad()
def _are_probabilities(logits: Tensor) -> bool:
    sums = logits.sum(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    near = 16 * torch.finfo(logits.dtype).eps
    return logits.numel() > 0 and bool((logits >= 0).all() & ((sums - 1).abs() <= near).all())


def _shape(output: Any) -> str:
    return f"a shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
