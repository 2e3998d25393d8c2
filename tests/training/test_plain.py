"""Hyper-parameters of anybody's in checkpoints that are read without running code."""

import enum
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf

from syncbn.training import AtomicCheckpointIO
from syncbn.training.checkpoint import load_checkpoint
from syncbn.training.plain import with_plain_hyper_parameters


class Mode(enum.Enum):
    FAST = 1


class Name(enum.StrEnum):
    SHORT = "short"


class Level(enum.IntEnum):
    LOW = 3


class Metres(float):
    """A number with a unit."""


def hparams(**values: Any) -> dict[str, Any]:
    return {"hyper_parameters": values, "datamodule_hyper_parameters": {}}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (3, 3),
        ("a", "a"),
        (None, None),
        ((1, 2.5), (1, 2.5)),
        ([{"a": (True,)}], [{"a": (True,)}]),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (Path("a", "b"), "a/b"),
        (Name.SHORT, "short"),
        (Level.LOW, 3),
        (Metres(2.5), 2.5),
        (True, True),
        (torch.float16, torch.float16),
        (OrderedDict(a=1), {"a": 1}),
        (AttributeDict(a=1), {"a": 1}),
        (OmegaConf.create({"a": [1, {"b": 2}]}), {"a": [1, {"b": 2}]}),
    ],
)
def test_plain_values_are_kept_and_read_again(tmp_path: Path, value: Any, kept: Any) -> None:
    AtomicCheckpointIO().save_checkpoint(hparams(value=value), tmp_path / "c.ckpt")
    assert load_checkpoint(tmp_path / "c.ckpt")["hyper_parameters"] == {"value": kept}


@pytest.mark.parametrize(
    "value",
    [
        torch.nn.Linear(1, 1),
        partial(torch.optim.SGD, lr=0.1),
        torch.relu,
        torch.nn.ReLU,
        Mode.FAST,
        [1, object()],
        {1, 2},
    ],
)
def test_objects_stay_out_and_are_told_once(tmp_path: Path, value: Any) -> None:
    io = AtomicCheckpointIO()
    with pytest.warns(UserWarning, match="thing: these hyper-parameters are objects, and aren't kept"):
        io.save_checkpoint(hparams(thing=value, lr=0.1), tmp_path / "c.ckpt")
    io.save_checkpoint(hparams(thing=value, lr=0.1), tmp_path / "c.ckpt")  # a warning would be an error
    assert load_checkpoint(tmp_path / "c.ckpt")["hyper_parameters"] == {"lr": 0.1}


def test_the_class_of_the_mapping_stays_out_and_all_else_stays() -> None:
    checkpoint = {"state_dict": {}, "hparams_type": type(OmegaConf.create({})), "hyper_parameters": {"a": 1}}
    assert with_plain_hyper_parameters(checkpoint) == ({"state_dict": {}, "hyper_parameters": {"a": 1}}, [])
    assert "hparams_type" in checkpoint  # the trainer's own is left as it is


@pytest.mark.parametrize("value", [np.zeros(2), Mode.FAST, {"deep": [partial(print)]}])
def test_other_objects_are_refused_when_they_are_saved(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "c.ckpt"
    AtomicCheckpointIO().save_checkpoint({"mine": 1}, path)
    with pytest.raises(TypeError, match="the checkpoint holds objects that aren't read without running code: "):
        AtomicCheckpointIO().save_checkpoint({"mine": value}, path)
    assert load_checkpoint(path) == {"mine": 1}  # the one before it is whole
    assert [file.name for file in tmp_path.iterdir()] == ["c.ckpt"]
