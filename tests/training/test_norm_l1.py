"""The penalty's gradient, on a real step."""

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from syncbn.training import ClassificationTask, NormL1
from tests.training import fits


def task() -> ClassificationTask:
    module = fits.task(lr=0.1)
    nn.init.uniform_(module.net.bn1.weight, -1, 1)
    module.scheduler = None
    return module


def one_step(callbacks: list[L.Callback]) -> Any:
    with fits.launched():
        module = task()
        fits.trainer(max_steps=1, callbacks=callbacks).fit(module, fits.digits(train=32))
        return module.net


def test_the_first_step_moves_each_scale_by_the_penalty_more() -> None:
    plain, penalized = one_step([]), one_step([NormL1(0.01)])
    moved = plain.bn1.weight - penalized.bn1.weight
    torch.testing.assert_close(moved, 0.1 * 0.01 * task().net.bn1.weight.sign(), rtol=1e-3, atol=0)
    torch.testing.assert_close(plain.fc.weight, penalized.fc.weight, rtol=0, atol=0)


def test_a_strength_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="strength must be greater than 0"):
        NormL1(0)
