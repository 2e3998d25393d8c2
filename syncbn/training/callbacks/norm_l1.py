"""L1 penalty on the scales of norms, which identifies unneeded channels."""

import lightning.pytorch as L
import torch
from torch.optim import Optimizer

from syncbn.norm.core.arguments import check_arguments
from syncbn.policy.layers import is_batch_norm
from syncbn.training.callbacks.norm_l1_options import NormL1Options as Options


class NormL1(L.Callback):
    """Adds the penalty `strength`·Σ|γ| over all batch norms, by adding its gradient strength·sign(γ) to that of γ.

    Scales of unneeded channels go to 0, so that `syncbn.prune` can remove them. The logged loss doesn't include the
    penalty. γ should have no weight decay in addition (`ClassificationTask` gives it none).

    Args:
        strength: weight of the penalty, greater than 0; the paper's is 1e-4, for 160 epochs.

    Raises:
        ValueError: a strength that isn't greater than 0.

    Source: Liu et al., Network Slimming, ICCV 2017, https://arxiv.org/abs/1708.06519, equation 1.
    """

    def __init__(self, strength: float = Options.strength) -> None:
        check_arguments(Options, locals())
        self.strength = strength

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient."""
        for layer in pl_module.modules():
            gamma = getattr(layer, "weight", None)
            if is_batch_norm(layer) and isinstance(gamma, torch.Tensor) and gamma.grad is not None:
                gamma.grad.add_(gamma.detach().sign(), alpha=self.strength)
