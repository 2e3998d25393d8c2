"""Parameter groups and the learning-rate curve."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from syncbn.training.optim import parameter_groups
from syncbn.training.schedule import cosine_with_warmup, takes_total_steps
from tests.training import fits


def test_norm_parameters_and_biases_do_not_decay() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[3].weight.requires_grad_(False)
    decay, no_decay = parameter_groups(net)
    assert decay["params"] == [net[0].weight]
    assert [id(p) for p in no_decay["params"]] == [id(p) for p in (net[0].bias, *net[1].parameters(), net[3].bias)]

    optimizer = torch.optim.SGD([decay, no_decay], lr=1.0, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, before[name] * (0.5 if name == "0.weight" else 1.0))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter has requires_grad=True"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


def rates(total: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_with_warmup(optimizer, total, **options)
    seen = []
    for _ in range(total + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    seen = rates(100, warmup_fraction=0.2, final_fraction=0.1)
    for step in range(20):
        assert seen[step] == pytest.approx(2.0 * (step + 1) / 21)
    for step in range(20, 101):
        assert seen[step] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))))


def test_without_warm_up_the_first_rate_is_the_peak_and_the_last_is_zero() -> None:
    seen = rates(10, warmup_fraction=0.0)
    assert seen[0] == 2.0
    assert seen[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_schedule_goes_on_from_its_state() -> None:
    whole = rates(10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_with_warmup(optimizer, 10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    resumed_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    resumed = cosine_with_warmup(resumed_optimizer, 10)
    resumed.load_state_dict(schedule.state_dict())
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    for step in range(4, 10):
        assert resumed_optimizer.param_groups[0]["lr"] == pytest.approx(whole[step])
        resumed_optimizer.step()
        resumed.step()


@pytest.mark.parametrize(
    ("total", "options", "message"),
    [
        (0, {}, "total_steps must be at least 1, got 0"),
        (10, {"warmup_fraction": 1.0}, "warmup_fraction must be at least 0 and below 1, got 1.0"),
        (10, {"final_fraction": -0.1}, "final_fraction must be from 0 to 1, got -0.1"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(total: int, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(total, **options) if total else cosine_with_warmup(torch.optim.SGD([torch.zeros(1)], lr=1.0), total)


@pytest.mark.parametrize("name", ["StepLR", "ReduceLROnPlateau"])
def test_a_schedule_of_torchs_counts_epochs(name: str) -> None:
    """As in torch's own loop: a step of it after each epoch, by the validation's loss where it asks for one."""
    options = {"StepLR": {"step_size": 2, "gamma": 0.5}, "ReduceLROnPlateau": {"patience": 0, "threshold": 10.0}}[name]
    make = partial(getattr(torch.optim.lr_scheduler, name), **options)
    assert not takes_total_steps(make)
    assert takes_total_steps(torch.optim.lr_scheduler.OneCycleLR)
    with fits.launched():
        trainer, task = fits.trainer(max_epochs=4, limit_train_batches=3), fits.task(lr=1.0)
        task.scheduler = make
        trainer.fit(task, fits.digits(train=96, test=32))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule: Any = make(optimizer)
    for _ in range(4):
        optimizer.step()
        schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 1
