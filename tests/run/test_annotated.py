"""Parts of a run by people whose annotations name what only their type checker imports."""

from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from syncbn.run.construct import asks_for
from syncbn.run.targets import ALLOWED_VARIABLE
from syncbn.training.schedule import takes_total_steps
from tests.annotated import annotated

GUEST = """
from typing import TYPE_CHECKING

import lightning.pytorch as L
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from elsewhere import Mode, Network, Schedule


def in_steps(optimizer: Optimizer, steps: <Mode> = 2) -> <Schedule>:
    ...


def over_the_run(optimizer: Optimizer, total_steps: <Mode>) -> <Schedule>:
    ...


class Callback(L.Callback):
    def __init__(self, model: <nn.Module | Network> = None, mode: <Mode> = "min") -> None:
        super().__init__()
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = annotated(tmp_path, GUEST)
    monkeypatch.setenv(ALLOWED_VARIABLE, module.__name__)
    return module


def test_a_schedule_is_asked_for_its_arguments(guest: ModuleType) -> None:
    assert not takes_total_steps(guest.in_steps)
    assert takes_total_steps(guest.over_the_run)


def test_a_config_s_target_is_asked_for_its_arguments(guest: ModuleType) -> None:
    node = OmegaConf.create({"_target_": f"{guest.__name__}.Callback"})
    assert asks_for("model", "callbacks.own", node)
    assert not asks_for("mode", "callbacks.own", node)
