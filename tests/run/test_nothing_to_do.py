"""Callbacks for running statistics with networks that have none, or frozen ones: they do nothing."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from syncbn.run.errors import UserError
from tests.run.here import train

SHORT = [
    *("trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("data.batch_size=16", "trainer.log_every_n_steps=1"),
]
OF_STATISTICS = "callbacks=[default,recalibrate_norm,norm_monitor,momentum_schedule,norm_l1]"
SCHEDULE = ["callbacks.momentum_schedule.start=0.9", "callbacks.momentum_schedule.end=0.5"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose running statistics aren't the first ones, 0 and 1."""
    return train(tmp_path_factory.mktemp("pretrained"), "run", "norm=batch", *SHORT)


def of_norms(run: Any, name: str, affine: bool = False) -> dict[str, torch.Tensor]:
    """Statistics of the norms in a checkpoint, and γ and β."""
    state = {key: value for key, value in run.checkpoint(name)["state_dict"].items() if key.startswith("net.norms.")}
    return {key: value for key, value in state.items() if affine or not key.endswith(("weight", "bias"))}


@pytest.mark.parametrize("callback", ["ema", "swa", "recalibrate_norm"])
@pytest.mark.parametrize("finetune", ["frozen_stats", "frozen_bn"])
def test_frozen_statistics_stay_bit_for_bit(callback: str, finetune: str, tmp_path: Path, pretrained: Any) -> None:
    weights = [f"model.weights={pretrained.folder}/checkpoints/last.ckpt", f"finetune={finetune}", "norm=batch"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        run = train(tmp_path, "run", *weights, f"callbacks=[default,{callback}]", *SHORT)
    said = [str(warning.message) for warning in caught if "RecalibrateNorm" in str(warning.message)]
    nothing = "RecalibrateNorm does nothing: no layer has running statistics that may change"
    assert said == ([nothing] if callback == "recalibrate_norm" else [])
    for name in ("last", "best"):
        frozen = of_norms(run, name, affine=finetune == "frozen_bn")
        before = of_norms(pretrained, "last", affine=finetune == "frozen_bn")
        torch.testing.assert_close(frozen, before, rtol=0, atol=0)
    assert of_norms(run, "last")["net.norms.0.running_var"].std() > 0


@pytest.mark.parametrize("norm", [["norm=group", "norm.groups=2"], ["norm=none"], ["norm=frozen"], ["norm=weight"]])
def test_a_network_without_statistics_trains_with_callbacks_about_them(norm: list[str], tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="RecalibrateNorm does nothing"),
        pytest.warns(UserWarning, match="MomentumSchedule does nothing"),
    ):
        run = train(tmp_path, "run", *norm, OF_STATISTICS, *SCHEDULE, *SHORT)
    assert run.checkpoint()["global_step"] == 3
    averaged = train(tmp_path, "averaged", *norm, "callbacks=[default,ema]", *SHORT)
    assert averaged.checkpoint()["global_step"] == 3


def test_gradual_unfreezing_of_a_network_without_statistics(tmp_path: Path) -> None:
    stages = ["finetune=gradual", "callbacks.finetune.stages=[net.fc.*]", "callbacks.finetune.frozen_stats_epochs=1"]
    assert train(tmp_path, "run", "norm=layer", *stages, *SHORT).checkpoint()["global_step"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["finetune=frozen_stats", "norm=group", "norm.groups=2"], "no such normalization layer to freeze"),
        (["finetune=bn_only", "norm=none"], "nothing would be trained"),
        (["callbacks=norm_profiler"], "add debug=profiler"),
        (["callbacks=[none,ema]", "norm=decorrelated"], "normalizes by more than a mean and a variance"),
    ],
)
def test_what_can_not_be_done_is_refused_before_the_training(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, "run", *options, *SHORT)
