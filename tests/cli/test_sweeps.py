"""A sweep of which a job fails."""

from pathlib import Path

import pytest

from tests.cli.conftest import run_script


@pytest.mark.parametrize(
    "ranks", [(), pytest.param(("trainer=ddp",), marks=[pytest.mark.slow, pytest.mark.distributed], id="two ranks")]
)
def test_the_others_run_and_the_end_says_which_failed(ranks: tuple[str, ...], tmp_path: Path) -> None:
    """The rate makes the loss of the first infinite."""
    options = ["model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=4", "trainer.accelerator=cpu"]
    options += ["trainer.gradient_clip_val=null", "scheduler.warmup_fraction=0", "callbacks=none", "run_id=sweep"]
    done = run_script(tmp_path, "train", "-m", "optimizer.lr=1e19,0.1", *options, *ranks)
    assert done.code == 1
    assert done.out.count("test accuracy:") == 1
    assert "error: the loss isn't finite" in done.err
    assert done.err.splitlines()[-1].startswith("error: 1 of 2 job(s) failed: 0 in ")
    assert done.err.splitlines()[-1].endswith("sweep/0: exit code 1")
    assert (tmp_path / "outputs" / "sweep" / "1" / "metrics.csv").is_file()
