"""A non-finite loss on one rank stops all of them, or its step is skipped without a trace."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from syncbn.training import NanPolicy
from syncbn.training.checkpoint import load_checkpoint
from tests.ranks import Ranks
from tests.training import nan_runs
from tests.training.nan_runs import BATCHES, EPOCHS

Pool = Callable[[int], Ranks]
ALL = range(BATCHES * EPOCHS)


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def run(ranks: Pool, world: int, *args: Any, **options: Any) -> list[dict[str, Any]]:
    fit = partial(nan_runs.fit, **options)
    return ranks(2).run(fit, *args) if world == 2 else [fit(*args)]


@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_ranks_skip_the_step_of_a_batch_that_is_bad_on_one(ranks: Pool, tmp_path: Path, optimizer: str) -> None:
    bad = [0, 7, 8]
    expected, losses = nan_runs.by_hand([[number] for number in ALL if number not in bad], optimizer)
    for rank in run(ranks, 2, tmp_path, "skip", bad, optimizer=optimizer):
        assert_equal(rank["net"], expected.state_dict())
        assert rank["loss"] == pytest.approx(losses[-(BATCHES - 2) :].mean().item(), rel=1e-6)


@pytest.mark.parametrize("norm", ["batch", "cross_iteration"])
def test_statistics_and_windows_are_those_of_the_other_batches(tmp_path: Path, ranks: Pool, norm: str) -> None:
    bad = [4, 9]
    expected, _ = nan_runs.by_hand([[number] for number in ALL if number not in bad], norm=norm)
    (alone,) = run(ranks, 1, tmp_path, "skip", bad, norm=norm)
    assert all(value.isfinite().all() for value in alone["net"].values() if isinstance(value, Tensor))
    assert_equal({k: v for k, v in alone["net"].items() if isinstance(v, Tensor)}, dict(expected.named_parameters()))
    assert_equal(alone["net"], dict(expected.named_buffers()))


@pytest.mark.distributed
def test_accumulated_gradients_are_left_out_together(ranks: Pool, tmp_path: Path) -> None:
    pairs = [[number, number + 1] for number in ALL[::2]]
    expected, _ = nan_runs.by_hand([pair for pair in pairs if 3 not in pair])
    for rank in run(ranks, 2, tmp_path, "skip", [3], accumulate_grad_batches=2):
        assert_equal(rank["net"], expected.state_dict())


@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("bad", "trained"),
    [([8], [*range(6), 9, 10, 11]), ([3], [4, 5, *range(6, 12)])],
    ids=["to the checkpoint of an epoch", "to the start"],
)
def test_two_ranks_go_back_and_on_past_the_batch(
    ranks: Pool, tmp_path: Path, optimizer: str, bad: list[int], trained: list[int]
) -> None:
    expected, _ = nan_runs.by_hand([[number] for number in trained], optimizer)
    for rank in run(ranks, 2, tmp_path, "rewind", bad, optimizer=optimizer):
        assert_equal(rank["net"], expected.state_dict())


@pytest.mark.distributed
@pytest.mark.parametrize("bad", [8, 11])
def test_all_ranks_stop_and_say_where_before_anything_is_saved(ranks: Pool, tmp_path: Path, bad: int) -> None:
    ends = run(ranks, 2, tmp_path, "stop", [bad], norm="batch", log_every_n_steps=50)
    for rank in ends:
        assert f"the loss isn't finite on rank 1 in epoch 2 at batch {bad - BATCHES + 1}" in rank["error"]
        assert "nan_policy=stop" in rank["error"]
    saved = load_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == BATCHES
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_run_that_leaves_everything_out_stops(tmp_path: Path, ranks: Pool, policy: str) -> None:
    (alone,) = run(ranks, 1, tmp_path, policy, range(2, 12), patience=3)
    assert "in epoch 1 at batch 6, and neither was it in the 3 steps before" in alone["error"]


def test_a_gan_leaves_both_networks_as_they_were(tmp_path: Path) -> None:
    states = nan_runs.gan(tmp_path, [2])
    parameters = [name for name, _ in nan_runs.gans.net().named_parameters() if not name.startswith("average")]
    changed = {name.split(".")[0] for name in parameters if not torch.equal(states[1][name], states[2][name])}
    assert changed == {"generator"}  # its step saw no bad image
    assert all(value.isfinite().all() for value in states[-1].values())
    assert any(not torch.equal(states[2][name], states[3][name]) for name in states[2] if "discriminator" in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "ignore"}, "nan_policy must be one of 'stop', 'skip', 'rewind', got 'ignore'"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"policy": "rewind"}, "needs the checkpoint to go back to"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NanPolicy(**options)
