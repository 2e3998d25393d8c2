"""The momentum follows its schedule by the optimizer's steps, in a resumed run too."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest

from syncbn.training import MomentumSchedule
from tests.training import fits


class Seen(L.Callback):
    """Records the first layer's momentum at each batch, by optimizer step."""

    def __init__(self) -> None:
        self.momentum: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.momentum[trainer.global_step - 1] = pl_module.net.bn1.momentum


def fit(ckpt_path: Path | None = None, **options: Any) -> dict[int, float]:
    seen = Seen()
    with fits.launched():
        module = fits.task("sync")
        run = fits.trainer(max_epochs=2, callbacks=[MomentumSchedule(**options), seen])
        run.fit(module, fits.digits(train=80, batch_size=16), ckpt_path=ckpt_path)
    return seen.momentum


def test_it_goes_linearly_from_start_to_end_and_stays() -> None:
    seen = fit(start=0.5, end=0.1, shape="linear", fraction=0.4)
    assert seen == pytest.approx({0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2, **dict.fromkeys(range(4, 10), 0.1)})


def test_cosine_is_slow_at_both_ends() -> None:
    schedule = MomentumSchedule(start=1.0, end=0.0)
    assert [schedule.momentum_at(t) for t in (0, 1 / 3, 0.5, 1, 2)] == pytest.approx([1, 0.75, 0.5, 0, 0])


def test_a_resumed_run_has_the_momentum_of_its_step(tmp_path: Path) -> None:
    def first_epoch() -> None:
        with fits.launched():
            run = fits.trainer(max_epochs=1, callbacks=[MomentumSchedule(start=0.5, end=0.1)])
            run.fit(fits.task("sync"), fits.digits(train=80, batch_size=16))
            run.save_checkpoint(tmp_path / "half.ckpt")

    first_epoch()
    whole = fit(start=0.5, end=0.1)
    resumed = fit(start=0.5, end=0.1, ckpt_path=tmp_path / "half.ckpt")
    assert resumed == {step: whole[step] for step in range(5, 10)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 2.0}, r"momentum must be in \[0, 1\]"),
        ({"shape": "step"}, "shape must be 'linear' or 'cosine', got 'step'"),
        ({"fraction": 0.0}, "fraction must be above 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MomentumSchedule(**options)
