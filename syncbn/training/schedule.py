"""Learning rate schedules over optimizer steps."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.inspection import signature_of
from syncbn.training.schedule_options import CosineOptions as Options


def cosine_with_warmup(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = Options.warmup_fraction,
    final_fraction: float = Options.final_fraction,
) -> LambdaLR:
    """Linear warm-up to each group's learning rate, then cosine decay; step it after every optimizer step.

    With w = round(warmup_fraction·total_steps), the factor at step t is (t+1)/(w+1) for t < w, and afterwards
    f + (1-f)·(1 + cos(π·(t-w)/(total_steps-w)))/2 with f = `final_fraction`.

    Args:
        optimizer: optimizer whose groups' `lr` is the peak.
        total_steps: optimizer steps of the whole training; `ClassificationTask` gets it from the trainer.
        warmup_fraction: share of the steps in the warm-up, at least 0 and below 1.
        final_fraction: last learning rate relative to the peak, from 0 to 1.

    Raises:
        ValueError: a fraction out of range, or fewer than one step.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, https://arxiv.org/abs/1608.03983; warm-up: Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}; give the trainer max_epochs or max_steps")
    check_arguments(Options, locals())
    warmup_steps = round(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def takes_total_steps(schedule: Callable[..., Any]) -> bool:
    """Whether a function that makes a schedule asks for the steps of the training, and so counts these."""
    try:
        parameters = signature_of(schedule).parameters
    except (TypeError, ValueError):
        return True
    return "total_steps" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
